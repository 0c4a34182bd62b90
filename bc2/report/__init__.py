"""What a person sees of a run: its curves, its page, and its state as it goes on."""
