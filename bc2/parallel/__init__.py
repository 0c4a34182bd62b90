"""How a model that is built for one device is laid out over many."""
