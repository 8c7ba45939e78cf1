"""varlen without CUDA: a plain kernel checks its arguments, the meta device the call itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.tiny import FAMILIES, PAD, random_documents, rules, slots, tiny_config, tiny_model
from torch import Tensor
from torch.nn import functional as F

from plugin.batch import Batch
from plugin.config.families import DECODERS
from plugin.data.packing import Layout
from plugin.models import attention
from plugin.models.attention import Segments
from plugin.models.diffusion import DiffusionModel
from plugin.training.step import build_step

DOCUMENTS = random_documents(12, longest=26)
every_family = pytest.mark.parametrize("family", FAMILIES)


def packed_batch() -> Batch:
    (micro_batch,) = build_step(
        slots(12, 12), DOCUMENTS, rules(), batch_size=12, layout=Layout(True)
    ).micro_batches
    return micro_batch.batch


def fake_varlen(seen: list[dict[str, Any]], *, grouped: bool) -> Callable[..., Tensor]:
    """Compute varlen_attn after its documentation: q [N, H, E], k and v [N, G, E].

    Windows (left, right) are inclusive; -1 means none.
    """

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        **how: Any,
    ) -> Tensor:
        seen.append(
            {
                "q": q,
                "k": k,
                "v": v,
                "cu": cu_q,
                "same": cu_q is cu_k,
                "longest": (max_q, max_k),
                **how,
            }
        )
        assert how.get("enable_gqa") or q.shape[1] == k.shape[1]
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        left, right = how["window_size"]
        parts = []
        for start, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
            places = torch.arange(end - start)
            apart = places[None] - places[:, None]
            near = ((apart >= -left) | (left < 0)) & ((apart <= right) | (right < 0))
            one = (x[start:end].transpose(0, 1) for x in (q, k, v))
            parts.append(
                F.scaled_dot_product_attention(*one, attn_mask=near, scale=how["scale"]).transpose(
                    0, 1
                )
            )
        return torch.cat(parts)

    def new(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        *,
        scale=None,
        window_size=(-1, -1),
        enable_gqa=False,
    ):
        how = {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
        return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **how)

    def old(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)
    ):
        return attend(
            query,
            key,
            value,
            cu_seq_q,
            cu_seq_k,
            max_q,
            max_k,
            scale=scale,
            window_size=window_size,
        )

    return new if grouped else old


def replace_varlen(monkeypatch: pytest.MonkeyPatch, attend: Callable[..., Any]) -> None:
    monkeypatch.setattr(attention, "varlen_attn", attend)
    options = frozenset(inspect.signature(attend).parameters)
    monkeypatch.setattr(attention, "VARLEN_OPTIONS", options)


@every_family
@pytest.mark.parametrize("grouped", [True, False])
def test_varlen_arguments_match_its_documentation(
    family: str, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    replace_varlen(monkeypatch, fake_varlen(seen, grouped=grouped))
    model, batch = tiny_model(family), packed_batch()
    wanted = DiffusionModel(tiny_model(family), PAD, "loop")(batch)
    got = DiffusionModel(model, PAD, "varlen")(batch)
    torch.testing.assert_close(got.weighted, wanted.weighted, rtol=1e-5, atol=1e-5)
    N, H = batch.ids.shape[0], model.config.num_attention_heads
    width = 8 if family in DECODERS else 16 // H
    assert len(seen) == model.config.num_hidden_layers
    windows = [call["window_size"] for call in seen]
    assert windows == (
        [(-1, -1), (2, 2), (2, 2)] if family == "modernbert" else [(-1, -1)] * len(seen)
    )
    for call in seen:
        assert call["q"].shape == (N, H, width)
        assert call["cu"].dtype == torch.int32
        assert call["cu"].tolist() == batch.cu_seqlens.tolist()
        assert call["same"]
        assert call["longest"] == (batch.longest, batch.longest)
        assert call["scale"] == width**-0.5
        heads = getattr(model.config, "num_key_value_heads", H) if grouped else H
        assert call["k"].shape[1] == call["v"].shape[1] == heads


@pytest.mark.parametrize("family", ["llada", "Dream"])
def test_varlen_of_a_causal_model_looks_back_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    replace_varlen(monkeypatch, fake_varlen(seen, grouped=True))
    found: list[Tensor] = []
    for backend in ("loop", "varlen"):
        model = tiny_model(family)
        model.config.causal = True
        found.append(DiffusionModel(model, PAD, backend)(packed_batch()).weighted)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert {call["window_size"] for call in seen} == {(-1, 0)}


def test_varlen_computes_in_the_dtype_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dream's rotary tables promote queries and keys to float32; the kernel needs half precision."""
    seen: list[dict[str, Any]] = []
    replace_varlen(monkeypatch, fake_varlen(seen, grouped=True))
    for family in FAMILIES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            DiffusionModel(tiny_model(family), PAD, "varlen")(
                packed_batch()
            ).weighted.sum().backward()
    assert {call[name].dtype for call in seen for name in "qkv"} == {torch.bfloat16}


def test_varlen_float32_values_compute_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's autocast makes a LayerNorm float32, and 4-bit layers return the dtype of their input."""
    seen: list[dict[str, Any]] = []
    replace_varlen(monkeypatch, fake_varlen(seen, grouped=True))
    batch = packed_batch()
    q, k, v = (
        torch.randn(1, heads, batch.ids.shape[0], 8, requires_grad=True) for heads in (4, 2, 2)
    )
    segments = Segments.of(batch, "varlen")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = attention.varlen(q, k, v, segments, None, 0.3)
    assert {call[name].dtype for call in seen for name in "qkv"} == {torch.bfloat16}
    torch.testing.assert_close(
        mixed.float(), attention.varlen(q, k, v, segments, None, 0.3), rtol=2e-2, atol=2e-2
    )


@pytest.mark.parametrize(("reach", "causal"), [(None, False), (2, False), (None, True)])
def test_installed_varlen_accepts_our_call_on_meta(reach: int | None, causal: bool) -> None:
    """The real signature, shape checks and autograd registration, without the kernels."""
    batch = packed_batch().to(torch.device("meta"))
    N = batch.ids.shape[0]
    q, k, v = (
        torch.empty(1, heads, N, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for heads in (4, 2, 2)
    )
    mixed = attention.varlen(q, k, v, Segments.of(batch, "varlen", causal=causal), reach, 0.3)
    assert mixed.shape == (1, N, 4, 8)
    mixed.sum().backward()
    assert q.grad is not None and k.grad is not None and v.grad is not None  # noqa: PT018
    assert (q.grad.shape, k.grad.shape, v.grad.shape) == (q.shape, k.shape, v.shape)


@pytest.mark.parametrize("backend", ["varlen", "dense"])
def test_making_segments_never_reads_the_device(backend: str) -> None:
    """A meta tensor cannot be read, so that any wait for a GPU fails here."""
    segments = Segments.of(packed_batch().to(torch.device("meta")), backend)
    assert segments.cu_seqlens.dtype == torch.int32
    assert segments.longest == packed_batch().longest


def test_unavailable_varlen_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = tiny_config("llada")
    cuda, half = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "CPU" in attention.why_no_varlen(config, torch.device("cpu"), half)
    assert "float32" in attention.why_no_varlen(config, cuda, torch.float32)
    assert "width" in attention.why_no_varlen(config, cuda, half), "4 is not a multiple of 8"
    wide = tiny_config("llada", hidden_size=64)
    assert attention.why_no_varlen(wide, cuda, half) == ""

    def of_torch_2_10(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None
    ): ...

    replace_varlen(monkeypatch, of_torch_2_10)
    assert "windows" in attention.why_no_varlen(wide, cuda, half)
