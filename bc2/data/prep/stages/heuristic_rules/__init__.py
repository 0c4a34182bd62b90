"""The rules of the stage `heuristics`: what they measure, their limits, and the judgement."""
