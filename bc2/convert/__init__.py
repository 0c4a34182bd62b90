"""Models of other libraries' layouts, read and written."""
