"""A process among others: its signals, streams, open files, and what launchers say of it.

Nothing here imports anything that takes long: `signals` is followed before all else.
"""
