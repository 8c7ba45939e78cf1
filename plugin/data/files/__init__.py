"""Data files of this machine: formats, folders, and folders that `datasets` saved."""
