"""The stages of the funnel, one file each; a stage's helpers in a folder of their own."""
