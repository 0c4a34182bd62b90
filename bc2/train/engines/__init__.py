"""Engines: how one optimizer step is made. The same semantics in each."""
