"""What a run writes of itself, and how that is read: logs, run folders, trackers."""
