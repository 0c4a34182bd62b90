"""The funnel of data preparation: its stages, the code that runs them, the corpus they make."""
