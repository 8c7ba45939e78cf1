"""Dialogue with a model in a process of its own: a client of `main.py chat --json`."""
