"""Program 2: `python -m plugin.worker RUN`, one process a device."""
