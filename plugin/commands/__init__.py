"""Commands that are programs of their own: chat, fuse and plan."""
