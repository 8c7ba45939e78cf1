"""Foundations that import nothing of the product: errors, files, processes, redaction."""
