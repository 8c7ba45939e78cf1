"""Data: file row -> example -> document -> step -> micro-batch."""
