"""An OpenAI-compatible server over the inference engine."""
