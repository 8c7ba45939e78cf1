"""Programs of their own: prepare, plan, chat, sample, evaluate, fuse, export, probe, compare, plot, queue, studio."""
