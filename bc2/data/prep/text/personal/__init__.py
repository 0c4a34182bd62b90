"""Each kind of personal data: how it is written, and what shows that something is none."""
