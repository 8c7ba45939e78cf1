"""Sampling: block-wise denoising of a canvas."""
