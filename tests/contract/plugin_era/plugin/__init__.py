WHOSE = "the host"
