"""The funnel of data preparation: a file a stage, and what runs them."""
