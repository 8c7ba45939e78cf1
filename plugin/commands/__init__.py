"""Commands that are programs of their own, because they import torch: chat and fuse."""
