"""Rules between parameters: what is refused, what has no effect, what may change on resume."""
