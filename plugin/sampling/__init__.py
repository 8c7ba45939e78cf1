"""From a model to text: block-wise denoising."""
