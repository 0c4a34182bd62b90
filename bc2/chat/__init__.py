"""A conversation with a model at a terminal, or through a pipe."""
