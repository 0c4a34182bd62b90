"""What is wrong, or worth knowing, about conversations before a model learns them."""
