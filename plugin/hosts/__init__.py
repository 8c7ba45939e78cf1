"""Hosts that ask for a run: a shell, today's app, the app of the plugin era."""
