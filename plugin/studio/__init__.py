"""Studio: form, queue, curves, player and chat on one local page, over the folders of runs."""
