"""A stand-in for the plugin-era SDK: none of the host's lines, only names and observed behaviour.

The behaviour was seen when the host ran (see hosts.md).
"""
