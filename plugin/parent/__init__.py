"""Program 1, without torch: checks a job, starts its workers and supervises them."""
