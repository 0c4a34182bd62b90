"""Keys and values of earlier tokens in blocks of one pool, and attention to them."""
