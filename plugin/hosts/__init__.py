"""Hosts: whoever asked for a run."""
