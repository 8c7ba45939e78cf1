"""Templates of a form and of a tokenizer, rendered in a child process under limits."""
