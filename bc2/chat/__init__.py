"""A conversation with a model in a terminal, or through a pipe."""
