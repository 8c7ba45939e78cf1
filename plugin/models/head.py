"""Fused output projection and cross-entropy over masked tokens, for training and evaluation.

Only one chunk of logits exists at a time. Its share of every gradient is computed immediately, so
that the full [M, V] is never stored. The idea is that of Liger's fused linear cross-entropy (arXiv
2410.10989) and Apple's cut-cross-entropy (arXiv 2411.09009), here in plain torch: two products and
five passes over a chunk.

The certainty term (dParallel, arXiv 2509.26488) adds weight * H(softmax(z / T)) of every masked
token whose likeliest token is its target. It makes right predictions surer, so that a sampler with
a threshold accepts more of them at once.

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
TEMPERATURE = 0.5  # T of the certainty term, as dParallel and d3LLM have it
# exp of it is 0 in float32; a finite number, because 0 * inf is none
_NEVER = -200.0


class TokenScores(NamedTuple):
    """Scores of masked tokens under the distribution that a sampler draws from."""

    log_p: Tensor  # [M] float32, nats: of the target
    best: Tensor  # [M] float32, nats: of the likeliest token
    correct: Tensor  # [M] bool: the target is the likeliest token


class Sums(NamedTuple):
    """Sums over the masked tokens of each document; the loop alone divides.

    A tuple, because the hooks of FSDP2 find tensors in tuples.
    """

    weighted: Tensor  # [S] sum of weight * nll, and of the certainty term: the objective
    nll: Tensor  # [S] sum of nll, nats
    correct: Tensor  # [S] number of masked tokens whose likeliest token is the target


@dataclass(frozen=True)
class Rows:
    """Targets, weights and documents of the M masked tokens."""

    target: Tensor  # [M]
    weight: Tensor  # [M]
    document: Tensor  # [M]
    documents: int  # S
    # [M] what a weight of 1 is in `weight`, where the loss divides by a document's length; 1 without
    unit: Tensor | None = None

    def per_document(self, values: Tensor) -> Tensor:
        """Sum values [M] to float32 [S]."""
        return torch.zeros(self.documents, dtype=torch.float32, device=values.device).index_add(
            0, self.document, values.float()
        )


@dataclass(frozen=True)
class Terms:
    """Settings of the loss in addition to its cross-entropy."""

    forbidden: int | None = None  # an id that is never an output: its logit is -inf
    certainty: float = 0.0  # weight of the certainty term

    def certainty_of(self, rows: Rows) -> Tensor | None:
        """Return the weight [M] of each token's entropy, None for a loss without the term."""
        if not self.certainty:
            return None
        unit = torch.ones_like(rows.weight) if rows.unit is None else rows.unit
        return unit * self.certainty


PLAIN = Terms()


def masked_sums(
    states: Tensor, project: Callable[[Tensor], Tensor], rows: Rows, terms: Terms = PLAIN
) -> Sums:
    """Return the sums over each document's masked tokens, float32 in every compute dtype.

    `states` [M, D] are the input of `project`, the output projection. A plain linear layer is fused
    with the loss. Any other module (such as a layer that peft has wrapped) is called chunk by chunk
    and called again in the backward pass. Only `weighted` carries gradients.
    """
    if isinstance(project, nn.Linear) and type(project) is nn.Linear:
        learns = torch.is_grad_enabled()
        weighted, nll, correct = _LinearLoss.apply(
            states, project.weight, project.bias, rows, terms, _compute_dtype(states), learns
        )
    else:
        losses, nll_of, hits = _called_losses(states, project, rows, terms)
        weighted, nll, correct = (rows.per_document(each) for each in (losses, nll_of, hits))
    return Sums(weighted, nll, correct)


def _called_losses(
    states: Tensor, project: Callable[[Tensor], Tensor], rows: Rows, terms: Terms
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss [M], nll [M], correct [M]) by calling `project`.

    A first call shows the width of its output. Only the loss carries gradients.
    """
    certainty = terms.certainty_of(rows)

    def losses(states: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        logits = project(states).float()  # [C, V]
        _forbid(logits, terms.forbidden)
        hits = logits.detach().argmax(-1) == target
        sure = None if certainty is None else _entropy(logits) * hits
        return F.cross_entropy(logits, target, reduction="none"), hits.float(), sure

    with torch.no_grad():
        vocabulary = project(states[:1]).shape[-1]
    pieces = _chunks(states.shape[0], vocabulary, states.device, 1 if certainty is None else 3)
    parts = [
        checkpoint(losses, states[piece], rows.target[piece], use_reentrant=False)
        for piece in pieces
    ]
    nll, correct, entropy = zip(*(parts or [losses(states, rows.target)]), strict=True)
    nll, correct = torch.cat(nll), torch.cat(correct)
    loss = nll * rows.weight
    if certainty is not None:
        loss = loss + torch.cat(entropy) * certainty
    return loss, nll.detach(), correct


def _forbid(logits: Tensor, forbidden: int | None) -> None:
    """Set the logit of a token that is never an output, in place."""
    if forbidden is not None:
        logits[:, forbidden].fill_(-torch.inf)


def _entropy(logits: Tensor) -> Tensor:
    """Return the entropy [C] of softmax(logits / T), in nats, of logits [C, V]."""
    highest = logits.detach().amax(-1, keepdim=True)
    log_p = ((logits - highest) / TEMPERATURE).clamp(min=_NEVER).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def _entropy_and_slope(below: Tensor) -> tuple[Tensor, Tensor]:
    """Return the entropy [C] of softmax(z / T) and its gradient [C, V] by z.

    `below` [C, V] is z minus the highest of its row. With p = softmax(z / T):
    dH / dz = -p (log p + H) / T.
    """
    log_p = (below / TEMPERATURE).clamp_(min=_NEVER)
    p = log_p.exp()
    mass = p.sum(-1, keepdim=True)
    p.div_(mass)
    log_p.sub_(mass.log())
    entropy = -torch.linalg.vecdot(p, log_p)
    return entropy, p.mul_(log_p.add_(entropy[:, None])).div_(-TEMPERATURE)


@torch.no_grad()
def token_scores(
    states: Tensor,
    project: Callable[[Tensor], Tensor],
    target: Tensor,
    mask_id: int,
    unguided: Tensor | None = None,
    scale: float = 0.0,
) -> TokenScores:
    """Score each target [M] from states [M, D], the input of `project`.

    As in the sampler, the mask token is no output: its logit is -inf. `unguided` [M, D] are the
    states without a prompt, and logits = without + (scale + 1) (with - without).
    """
    parts: list[TokenScores] = []
    vocabulary = project(states[:1]).shape[-1]
    for piece in _chunks(states.shape[0], vocabulary, states.device):
        logits = project(states[piece]).float()  # [C, V]
        if unguided is not None:
            without = project(unguided[piece]).float()
            logits = without + (scale + 1) * (logits - without)
        logits[:, mask_id] = -torch.inf
        mass = logits.logsumexp(-1)
        top, likeliest = logits.max(-1)
        true = logits.gather(1, target[piece, None])[:, 0]
        parts.append(TokenScores(true - mass, top - mass, likeliest == target[piece]))
    return TokenScores(*map(torch.cat, zip(*parts, strict=True)))


def _compute_dtype(states: Tensor) -> torch.dtype:
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def _chunks(count: int, vocabulary: int, device: torch.device, buffers: int = 1) -> list[slice]:
    """Return slices of nearly equal size over `count` rows, with their `buffers` in the buffer."""
    most = max(1, BUFFER.get(device.type, BUFFER["cuda"]) // (4 * vocabulary * buffers))
    number = -(-count // most)
    size = -(-count // max(1, number))
    return (
        [slice(start, min(start + size, count)) for start in range(0, count, size)] if count else []
    )


class _Factors(NamedTuple):
    """Factors of each masked token in the sum whose gradients are computed."""

    nll: Tensor  # [M]
    certainty: Tensor | None  # [M]


@dataclass
class _Gradients:
    """Gradients of the sum that `_Factors` weigh, for those of states, weight and bias that need one."""

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
        terms: Terms,
        dtype: torch.dtype,
        learns: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs = ctx.needs_input_grad[:3]
        ctx.rows, ctx.terms, ctx.dtype = rows, terms, dtype
        ctx.save_for_backward(states, weight, bias)
        now = learns and any(needs) and dtype != torch.float16
        factors = _Factors(rows.weight, terms.certainty_of(rows))
        nll, correct, entropy, ctx.ready = _losses(
            states, weight, bias, rows.target, terms, dtype, factors if now else None, needs
        )
        loss = nll * rows.weight
        if entropy is not None and factors.certainty is not None:
            loss += entropy * factors.certainty
        weighted, plain, right = (rows.per_document(each) for each in (loss, nll, correct))
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
            upstream, certainty = of_weighted[rows.document], ctx.terms.certainty_of(rows)
            factors = _Factors(
                rows.weight * upstream, None if certainty is None else certainty * upstream
            )
            *_, again = _losses(
                states,
                weight,
                bias,
                rows.target,
                ctx.terms,
                ctx.dtype,
                factors,
                ctx.needs_input_grad[:3],
            )
            assert again is not None
            found = again.states, again.weight, again.bias
        return (*found, None, None, None, None)


def _losses(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    terms: Terms,
    dtype: torch.dtype,
    factors: _Factors | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor, Tensor, Tensor | None, _Gradients | None]:
    """Return (nll [M], correct [M], entropy [M]) in float32 and, given `factors`, gradients.

    The entropy is that of the certainty term, 0 where the likeliest token is not the target, and
    None without the term. Products run in `dtype`.
    """
    M, V = states.shape[0], weight.shape[0]
    nll, correct = (torch.empty(M, dtype=torch.float32, device=states.device) for _ in range(2))
    entropy = torch.empty_like(nll) if terms.certainty else None
    grown = None if factors is None else _no_gradients(states, weight, bias, needs)
    with torch.autocast(states.device.type, enabled=False):
        x, w, b = states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        pieces = _chunks(M, V, states.device, 1 if entropy is None else 3)
        # One buffer for all chunks: on a CPU new pages cost more than adding the bias.
        buffer = torch.empty(pieces[0].stop if pieces else 0, V, dtype=dtype, device=states.device)
        for piece in pieces:
            at = target[piece, None]  # [C, 1]
            # [C, V], overwritten in place below
            logits = _project(x[piece], w, b, buffer[: piece.stop - piece.start]).float()
            _forbid(logits, terms.forbidden)
            true = logits.gather(1, at)
            top, likeliest = logits.max(-1, keepdim=True)
            right = (likeliest == at).float()
            logits.sub_(top)
            of_entropy = None
            if entropy is not None:
                found, of_entropy = _entropy_and_slope(logits)
                entropy[piece] = found * right[:, 0]
            mass = logits.exp_().sum(-1, keepdim=True)
            nll[piece] = (mass.log() + top - true)[:, 0]
            correct[piece] = right[:, 0]
            if grown is not None and factors is not None:
                scale = factors.nll[piece, None].float()
                # d/d logits: factor * (softmax - target); one target a row, so no scatter collides
                slope = logits.mul_(scale / mass)
                slope.scatter_(1, at, slope.gather(1, at) - scale)
                if of_entropy is not None and factors.certainty is not None:
                    slope.addcmul_(of_entropy, factors.certainty[piece, None] * right)
                _grow(grown, piece, slope.to(dtype), x, w)
    return nll, correct, entropy, grown


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
