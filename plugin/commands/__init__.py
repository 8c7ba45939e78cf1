"""Commands that are torch programs of their own: prepare, chat, fuse, probe."""
