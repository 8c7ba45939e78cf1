"""Program 2, one process a device: `python -m plugin.worker RUN` trains and reports."""
