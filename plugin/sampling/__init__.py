"""Sampling: text from a model by block-wise denoising."""
