"""Commands that are torch programs of their own: chat and fuse."""
