"""A stand-in for the plugin-era SDK: no line of it is the host's, only names and what was seen when
the host ran (see hosts.md).
"""
