"""Pairs of answers as samples, packed rows and batches: what reward models and DPO train on."""
