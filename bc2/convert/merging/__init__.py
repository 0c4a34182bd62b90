"""One model of several: merging recipes, and adapters folded into their base."""
