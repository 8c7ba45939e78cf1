"""Run folder: the contract between the programs, hosts and people."""
