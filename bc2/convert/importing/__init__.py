"""Models of other tools, from a folder or the hub, as checkpoints of ours."""
