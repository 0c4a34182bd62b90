"""All that touches lm-eval: the only room that imports it, and only when it is used."""
