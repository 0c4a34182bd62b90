"""What training takes in memory, worked out beforehand; and what memory there is."""
