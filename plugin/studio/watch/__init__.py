"""Pages of runs: one as it trains, and several side by side."""
