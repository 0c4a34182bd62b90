"""Code of the stages that remove duplicates: connected components, repeated passages."""
