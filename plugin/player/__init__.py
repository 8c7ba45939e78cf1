"""Player of a denoising: a page complete in itself, from the steps of a saved answer."""
