"""Fused output projection and cross-entropy over masked tokens, for training and evaluation.

Only one chunk of logits exists at a time. Its share of every gradient is computed immediately, so
that the full [M, V] is never stored. The idea is that of Liger's fused linear cross-entropy (arXiv
2410.10989) and Apple's cut-cross-entropy (arXiv 2411.09009), here in plain torch: two products and
five passes over a chunk.

N tokens of a batch, M masked, S documents, D width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Bytes of a chunk's float32 logits. On a CPU 128 to 256 rows of a 50k to 126k vocabulary are
# fastest; a GPU needs few, large chunks.
BUFFER = {"cpu": 64 << 20, "cuda": 512 << 20}


class Sums(NamedTuple):
    """Sums over the masked tokens of each document; the loop alone divides.

    A tuple, because the hooks of FSDP2 find tensors in tuples.
    """

    weighted: Tensor  # [S] sum of weight * nll: the objective
    nll: Tensor  # [S] sum of nll, nats
    correct: Tensor  # [S] number of masked tokens whose likeliest token is the target


@dataclass(frozen=True)
class Rows:
    """Targets, weights and documents of the M masked tokens."""

    target: Tensor  # [M]
    weight: Tensor  # [M]
    document: Tensor  # [M]
    documents: int  # S

    def per_document(self, values: Tensor) -> Tensor:
        """Sum values [M] to float32 [S]."""
        return torch.zeros(self.documents, dtype=torch.float32, device=values.device).index_add(
            0, self.document, values.float()
        )


def masked_sums(states: Tensor, project: Callable[[Tensor], Tensor], rows: Rows) -> Sums:
    """Return the sums over each document's masked tokens, float32 in every compute dtype.

    `states` [M, D] are the input of `project`, the output projection. A plain linear layer is fused
    with the loss. Any other module (such as a layer that peft has wrapped) is called chunk by chunk
    and called again in the backward pass. Only `weighted` carries gradients.
    """
    if isinstance(project, nn.Linear) and type(project) is nn.Linear:
        learns = torch.is_grad_enabled()
        weighted, nll, correct = _LinearLoss.apply(
            states, project.weight, project.bias, rows, _compute_dtype(states), learns
        )
    else:
        losses, hits = _called_losses(states, project, rows)
        weighted, nll, correct = (
            rows.per_document(each) for each in (losses * rows.weight, losses.detach(), hits)
        )
    return Sums(weighted, nll, correct)


def _called_losses(
    states: Tensor, project: Callable[[Tensor], Tensor], rows: Rows
) -> tuple[Tensor, Tensor]:
    """Return (nll [M], correct [M]) by calling `project`, whose output width a first call shows."""

    def losses(states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = project(states).float()  # [C, V]
        return F.cross_entropy(logits, target, reduction="none"), (
            logits.detach().argmax(-1) == target
        ).float()

    with torch.no_grad():
        vocabulary = project(states[:1]).shape[-1]
    pieces = _chunks(states.shape[0], vocabulary, states.device)
    parts = [
        checkpoint(losses, states[piece], rows.target[piece], use_reentrant=False)
        for piece in pieces
    ]
    nll, correct = zip(*(parts or [losses(states, rows.target)]), strict=True)
    return torch.cat(nll), torch.cat(correct)


def _compute_dtype(states: Tensor) -> torch.dtype:
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def _chunks(count: int, vocabulary: int, device: torch.device) -> list[slice]:
    """Return slices of nearly equal size over `count` rows, each within the buffer."""
    most = max(1, BUFFER.get(device.type, BUFFER["cuda"]) // (4 * vocabulary))
    number = -(-count // most)
    size = -(-count // max(1, number))
    return (
        [slice(start, min(start + size, count)) for start in range(0, count, size)] if count else []
    )


@dataclass
class _Gradients:
    """Gradients of sum(factor * nll), for those of states, weight and bias that need one."""

    states: Tensor | None  # [M, D]
    weight: Tensor | None  # [V, D] float32 while it grows
    bias: Tensor | None  # [V]


class _LinearLoss(torch.autograd.Function):
    """(states [M, D], weight [V, D], bias [V] or None) -> (weighted, nll, correct), float32 [S].

    The forward pass computes gradients for the sum of all documents, and the loop's backward pass
    scales them by one number. Any other upstream gradient (a factor per document, a second backward
    pass, or float16, where gradients underflow until scaled) recomputes them, for one more product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Rows,
        dtype: torch.dtype,
        learns: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs = ctx.needs_input_grad[:3]
        ctx.rows, ctx.dtype = rows, dtype
        ctx.save_for_backward(states, weight, bias)
        now = learns and any(needs) and dtype != torch.float16
        nll, correct, ctx.ready = _losses(
            states, weight, bias, rows.target, dtype, rows.weight if now else None, needs
        )
        weighted, plain, right = (
            rows.per_document(each) for each in (nll * rows.weight, nll, correct)
        )
        ctx.mark_non_differentiable(plain, right)
        return weighted, plain, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_weighted, (states, weight, bias) = outputs[0], ctx.saved_tensors
        rows, ready = ctx.rows, ctx.ready
        ctx.ready = None  # scaled in place below, so usable only once
        # the gradient of sum() is an expanded scalar: the same number for every document
        if ready is not None and of_weighted.stride() == (0,):
            found = tuple(
                None if gradient is None else gradient.mul_(of_weighted[0])
                for gradient in (ready.states, ready.weight, ready.bias)
            )
        else:
            factor = rows.weight * of_weighted[rows.document]
            _, _, again = _losses(
                states, weight, bias, rows.target, ctx.dtype, factor, ctx.needs_input_grad[:3]
            )
            assert again is not None
            found = again.states, again.weight, again.bias
        return (*found, None, None, None)


def _losses(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    dtype: torch.dtype,
    factor: Tensor | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor, Tensor, _Gradients | None]:
    """Return (nll [M], correct [M]) in float32 and, given `factor`, gradients.

    They are those of sum(factor * nll), `factor` [M]. Products run in `dtype`.
    """
    M, V = states.shape[0], weight.shape[0]
    nll, correct = (torch.empty(M, dtype=torch.float32, device=states.device) for _ in range(2))
    grown = None if factor is None else _no_gradients(states, weight, bias, needs)
    with torch.autocast(states.device.type, enabled=False):
        x, w, b = states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        pieces = _chunks(M, V, states.device)
        # One buffer for all chunks: on a CPU new pages cost more than adding the bias.
        buffer = torch.empty(pieces[0].stop if pieces else 0, V, dtype=dtype, device=states.device)
        for piece in pieces:
            at = target[piece, None]  # [C, 1]
            # [C, V], overwritten in place below
            logits = _project(x[piece], w, b, buffer[: piece.stop - piece.start]).float()
            true = logits.gather(1, at)
            top, likeliest = logits.max(-1, keepdim=True)
            mass = logits.sub_(top).exp_().sum(-1, keepdim=True)
            nll[piece] = (mass.log() + top - true)[:, 0]
            correct[piece] = (likeliest == at)[:, 0].float()
            if grown is not None and factor is not None:
                scale = factor[piece, None].float()
                # d/d logits: factor * (softmax - target); one target a row, so no scatter collides
                slope = logits.mul_(scale / mass)
                slope.scatter_(1, at, slope.gather(1, at) - scale)
                _grow(grown, piece, slope.to(dtype), x, w)
    return nll, correct, grown


def _project(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> Tensor:
    """Project x [C, D] to logits [C, V], written into `out`."""
    return torch.mm(x, w.T, out=out) if b is None else torch.addmm(b, x, w.T, out=out)


def _no_gradients(
    states: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, ...]
) -> _Gradients:
    of_states, of_weight, of_bias = needs
    return _Gradients(
        torch.empty_like(states) if of_states else None,
        torch.zeros_like(weight, dtype=torch.float32) if of_weight else None,
        torch.zeros_like(bias, dtype=torch.float32) if of_bias and bias is not None else None,
    )


def _grow(grown: _Gradients, piece: slice, slope: Tensor, x: Tensor, w: Tensor) -> None:
    """Add the gradients of a chunk, from its slopes [C, V]."""
    if grown.states is not None:
        grown.states[piece] = slope @ w
    if grown.weight is not None:
        rows = x[piece]
        if slope.dtype == torch.float32:
            grown.weight.addmm_(slope.T, rows)
        else:
            grown.weight += slope.T @ rows  # half precision inside a chunk, float32 between chunks
    if grown.bias is not None:
        grown.bias += slope.sum(0, dtype=torch.float32)
