"""What the paths of the server answer."""
