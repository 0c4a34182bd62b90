"""Proofs on the user's own recipe and machine: `bc2 verify`."""
