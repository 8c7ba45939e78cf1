"""transformers' own causal LMs as diffusion models: their attention, mask token, SDAR's layout."""
