"""Templates: those of a form and those of a tokenizer, rendered by a child under limits."""
