"""Plans of runs: published sizes, budgets, GPUs, isoFLOP grids and the laws fitted to them."""
