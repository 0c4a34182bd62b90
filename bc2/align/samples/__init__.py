"""Conversations as samples, and samples packed into rows: what all of alignment trains on."""
