"""Hosts: a shell, today's Transformer Lab, and its plugin era."""
