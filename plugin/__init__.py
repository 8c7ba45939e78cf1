"""Trainer for text-diffusion language models.

Never pip-installed: `main.py` and `-m plugin.worker` put its folder on the path.
"""
