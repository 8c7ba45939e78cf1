"""Deterministic algorithms as on a GPU: each operation without a fixed order is named once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.utils.deterministic

from plugin.assembly.precision import make_deterministic


@pytest.fixture
def undone() -> Iterator[None]:
    """Restore the global switches after the test."""
    fill, benchmark = (
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )
    with warnings.catch_warnings():
        yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = benchmark


def scatter() -> None:
    """Run an operation that has a deterministic form on no device."""
    torch.zeros(4).put_(torch.tensor([0, 1]), torch.ones(2))


@pytest.mark.usefixtures("undone")
def test_operation_without_order_is_named_once() -> None:
    lines: list[str] = []
    said = make_deterministic(torch.device("cuda"), lines.append)
    assert "the same bits, but for operations that a line below names" in said
    scatter()
    scatter()
    assert len(lines) == 1
    assert lines[0].startswith("determinism: put_ adds in no fixed order here")


@pytest.mark.usefixtures("undone")
def test_flash_attention_is_named_and_other_warnings_shown() -> None:
    lines: list[str] = []
    make_deterministic(torch.device("cuda"), lines.append)
    warnings.warn(
        "Flash Attention defaults to a non-deterministic algorithm. To explicitly enable it call",
        stacklevel=1,
    )
    assert lines[0].startswith("determinism: Flash Attention adds in no fixed order")
    with pytest.raises(UserWarning, match="something else"):  # an error, like every warning here
        warnings.warn("something else", stacklevel=1)
    assert len(lines) == 1


def test_cpu_is_left_alone() -> None:
    assert make_deterministic(torch.device("cpu"), lambda line: None) == ""
    assert not torch.are_deterministic_algorithms_enabled()
