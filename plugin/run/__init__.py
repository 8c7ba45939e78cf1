"""The run folder: the contract between the programs, hosts and people."""
