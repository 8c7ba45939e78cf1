"""Sampling and likelihood: canvases denoised in batches, texts scored."""
