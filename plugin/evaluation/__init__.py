"""Evaluation of an encoder on a task of its users: classification, retrieval, latency."""
