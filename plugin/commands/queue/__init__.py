"""Queue of jobs from a shell: `main.py queue add|list|cancel|move|clear|log|start`."""
