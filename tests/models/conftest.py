"""Fixtures of the model tests: a single thread, which suits tiny models, and a saved BERT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny_model


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    tiny_model("bert").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"
