"""Program 1: checks a job, starts its workers and supervises them. Imports no torch."""
