"""Deterministic algorithms as on a GPU: each operation without a fixed order is named once.

And refusals of float8, whose device is faked.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.utils.deterministic
from helpers.refusals import refused

from plugin.assembly.precision import choose_float8, make_deterministic
from plugin.base.errors import Problem
from plugin.config.params import Params

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLOAT8 = Params(float8=True)


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


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for an H100 whose torchao is missing."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setitem(sys.modules, "torchao.float8", None)


def float8_refused(device: torch.device = CUDA, dtype: torch.dtype = torch.bfloat16) -> Problem:
    problem = refused(lambda: choose_float8(FLOAT8, device, dtype))
    assert (problem.field, problem.code) == ("float8", 2)
    assert "set float8 false" in problem.fix.lower()
    return problem


@pytest.mark.usefixtures("card")
def test_float8_not_asked_for_needs_nothing() -> None:
    assert choose_float8(Params(), CPU, torch.float32).value is False


@pytest.mark.usefixtures("card")
def test_float8_without_torchao_names_the_release_to_install() -> None:
    problem = float8_refused()
    assert problem.expected == "torchao installed"
    assert "pip install torchao==0.18.0" in problem.fix


@pytest.mark.usefixtures("card")
def test_float8_is_refused_on_a_cpu_and_on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    assert float8_refused(CPU).got == "a CPU"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert float8_refused().got == "an AMD GPU"


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(("capability", "old"), [((8, 0), True), ((8, 6), True), ((8, 9), False)])
def test_float8_needs_capability_8_9(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], old: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = float8_refused()
    assert ("8.9" in found.expected) is old, found
    assert (found.got == f"NVIDIA H100, {capability[0]}.{capability[1]}") is old, found


@pytest.mark.usefixtures("card")
def test_float8_needs_bfloat16_compute() -> None:
    assert float8_refused(dtype=torch.float32).got == "float32"


def test_torchao_pins_are_one_release() -> None:
    from helpers.support import ROOT

    from plugin.models.linear.float8 import TORCHAO

    assert TORCHAO in (ROOT / "requirements-float8.txt").read_text().split()
