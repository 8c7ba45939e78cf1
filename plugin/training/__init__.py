"""Mathematics of a run: the loop, steps, optimizers, sharding, memory.

Knows no parameters and no folder.
"""
