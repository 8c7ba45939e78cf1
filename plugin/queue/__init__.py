"""Queue of jobs: a folder of job files, run one after another on each set of devices."""
