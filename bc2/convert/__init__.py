"""Models of other families: what is said of them, and the way in."""
