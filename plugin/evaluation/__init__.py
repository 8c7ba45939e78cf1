"""Evaluation: benchmarks, scorers of your own files, and probes of an encoder."""
