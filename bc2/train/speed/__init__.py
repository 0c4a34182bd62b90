"""How fast a run computes: seconds by part, FLOPs of a step, the peak of a device."""
