"""Code that lies beside exported weights: bc2 copies it, and transformers runs it."""
