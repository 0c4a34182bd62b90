"""The recipes that bc2 ships: TOML files, read through `bc2.recipe`."""
