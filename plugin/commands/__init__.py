"""Commands that are programs of their own, since they import torch: chat and fuse."""
