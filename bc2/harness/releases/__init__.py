"""One reader for each benchmark's release: which files, which rows."""
