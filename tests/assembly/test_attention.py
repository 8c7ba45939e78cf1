"""Choice between packed and padded layouts: by device, dtype, model and parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.tiny import tiny_config

from plugin.assembly.attention import choose_attention
from plugin.base.errors import JobError
from plugin.config.parse import parse
from plugin.data.packing import Layout
from plugin.models import attention
from plugin.models.backbones import BACKBONES

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def choose(
    device: torch.device = CPU,
    dtype: torch.dtype = torch.bfloat16,
    family: str = "modernbert",
    mean_length: float = 90,
    **asked: Any,
) -> Any:
    params = parse({"dataset_name": "d.jsonl", "model_name": "m", **asked}).params
    return choose_attention(params, tiny_config(family, hidden_size=16), device, dtype, mean_length)


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")


def test_cpu_pads_short_documents_unless_asked_to_pack() -> None:
    assert choose(mean_length=26).backend is None
    assert "too short" in choose(mean_length=26).why
    assert choose(mean_length=26, packing="on").backend == "loop"


def test_a_cpu_packs_by_itself() -> None:
    for asked in ({}, {"packing": "on"}, {"attn_implementation": "sdpa"}):
        chosen = choose(**asked)
        assert (chosen.layout, chosen.backend) == (Layout(True), "loop")
    assert choose(tokens_per_batch=77).layout == Layout(True, 77)


def test_off_is_off() -> None:
    chosen = choose(packing="off", tokens_per_batch=77)
    assert (chosen.layout, chosen.backend) == (Layout(False, 77), None)


@pytest.mark.usefixtures("h200")
def test_a_gpu_packs_with_varlen() -> None:
    assert choose(CUDA).backend == "varlen"
    assert choose(CUDA, attn_implementation="varlen", packing="on").backend == "varlen"


@pytest.mark.usefixtures("h200")
def test_gpu_without_varlen_packs_only_on_request_and_says_why() -> None:
    single = choose(CUDA, torch.float32)
    assert single.backend is None
    assert "float32" in single.why
    assert choose(CUDA, torch.float32, packing="on").backend == "dense"
    assert choose(CUDA, attn_implementation="sdpa").backend is None
    assert choose(CUDA, attn_implementation="sdpa", packing="on").backend == "dense"


@pytest.mark.usefixtures("h200")
def test_an_old_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    with pytest.raises(JobError, match="T4"):
        choose(CUDA, attn_implementation="varlen")


def test_a_backend_the_device_lacks_is_one_line_by_name() -> None:
    with pytest.raises(JobError) as caught:
        choose(attn_implementation="varlen")
    (problem,) = caught.value.problems
    assert problem.field == "attn_implementation"
    assert "varlen" in problem.got
    assert "CPU" in problem.got
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("h200")
def test_varlen_without_packing_is_a_contradiction() -> None:
    with pytest.raises(JobError, match="attn_implementation"):
        choose(CUDA, attn_implementation="varlen", packing="off")


def test_eager_pads_and_refuses_to_pack() -> None:
    assert choose(attn_implementation="eager").backend is None
    with pytest.raises(JobError, match="eager"):
        choose(attn_implementation="eager", packing="on")


def test_a_family_without_proof_pads_and_refuses_to_be_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKBONES, "bert", replace(BACKBONES["bert"], encode_flat=None))
    assert choose(family="bert").backend is None
    with pytest.raises(JobError) as caught:
        choose(family="bert", packing="on")
    (problem,) = caught.value.problems
    assert (problem.field, problem.got) == ("packing", "bert")


def test_every_backend_that_can_be_chosen_exists() -> None:
    assert set(attention.BACKENDS) == {"loop", "dense", "varlen", "flex"}
