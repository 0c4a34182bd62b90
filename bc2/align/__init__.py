"""Alignment: what makes a chat model of a base model. Settings, pure losses, and streams."""
