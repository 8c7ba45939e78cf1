raise SystemExit("the decoy ran")
