"""Where untrusted programs run: a candidate's code in one process, its tests in another."""
