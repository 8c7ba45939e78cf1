"""Foundations: errors, files, processes and redaction, which know nothing of the rest."""
