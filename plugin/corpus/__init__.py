"""Raw text as a corpus: deduplicated, with its tokenizer, stored as tokens."""
