"""Noise, masks and loss weights: pure functions on numpy arrays, randomness as an argument.

They run in the collator on the CPU, so that a training step never waits for the device. Sums and
counts only: the loop divides.
"""
