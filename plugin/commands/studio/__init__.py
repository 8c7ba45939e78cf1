"""Local page of the whole product: `main.py studio`."""
