"""Dialogues with a trained model: `main.py chat MODEL`."""
