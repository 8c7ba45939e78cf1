"""Host adapter of Transformer Lab up to v0.30.1, which runs plugins."""
