"""The stages of the funnel, one file for each; some have helpers in a folder."""
