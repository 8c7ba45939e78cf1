"""Commands that are programs of their own: prepare, plan, chat, fuse, probe."""
