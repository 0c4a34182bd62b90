"""The stages of `benchmarks/gpu.py`: one file a stage, each run in a process of its own.

What they import is bc2's core and the packages of a bare machine: see `plain_configs`.
"""
