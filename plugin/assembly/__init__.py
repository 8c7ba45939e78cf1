"""Construction of a run: parameters become torch objects here alone."""
