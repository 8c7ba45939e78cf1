"""Readings of pretraining whose tokens are stored: a prepared folder, documents of this run."""
