"""Other ways to compute linear layers: lean adapters, float8."""
