"""CUDA graphs of the encoder for small steps, whose launches take longer than their arithmetic.

A graph has fixed sizes and addresses. So a flat batch is padded to the next of a few numbers of
tokens: by a document that nobody attends to, whose hidden states no loss reads, and by documents of
no length. Forward and backward of the encoder are then two launches. Head, loss and update stay
outside: they are few launches, and the number of masked tokens changes with every batch.

N tokens, S documents, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import first_line
from ..batch import Batch
from ..models.attention import Segments
from ..models.backbones import BACKBONES, unwrapped
from ..models.configuration import attention_pattern
from ..models.diffusion import DiffusionModel
from .step import Step

SAMPLED = 128  # steps of a run whose sizes are looked at
MOST_SIZES = 6  # graphs hold a copy of the gradients each
STEP = 64  # sizes are multiples of it, in tokens
# Relative difference of hidden states and gradients, captured and not, above which a capture is
# called broken. Kernels chosen for another number of tokens round bfloat16 otherwise, by under a
# hundredth; a graph that reads old sizes or addresses is wrong by about one.
TOLERANCE = 0.03

Inputs = tuple[Tensor, Tensor, Tensor]  # ids [N], position [N], cu_seqlens [S + 1] int32
Encode = Callable[[Tensor, Tensor, Tensor], Tensor]  # -> hidden [N, D]
Capture = Callable[["SizedEncoder", Inputs], Encode]


@dataclass(frozen=True)
class Sizes:
    """Numbers of tokens of the graphs, ascending, and the documents of each, filler included."""

    tokens: tuple[int, ...]
    documents: int

    def fitting(self, batch: Batch) -> int | None:
        """Return the smallest number of tokens that holds `batch`, None if none does."""
        return None if batch.documents >= self.documents else self.above(batch.ids.shape[0])

    def above(self, tokens: int) -> int | None:
        """Return the smallest number of tokens that is not below `tokens`, None if all are."""
        return next((size for size in self.tokens if size >= tokens), None)


def choose_sizes(tokens: Sequence[int], documents: int, most: int) -> Sizes:
    """Return at most `most` sizes for micro-batches of `tokens` tokens, with the least padding.

    `documents`: the most of a micro-batch. The last size holds the largest micro-batch. The choice
    is exact: dynamic programming over the sorted numbers.
    """
    rounded = sorted(-(-number // STEP) * STEP for number in tokens)
    ends = sorted(set(rounded))
    below = {end: sum(number <= end for number in rounded) for end in ends}
    # end -> (tokens computed for all micro-batches up to it, the sizes); one more size each round
    best: dict[int, tuple[int, tuple[int, ...]]] = {end: (below[end] * end, (end,)) for end in ends}
    for _ in range(most - 1):
        longer = dict(best)
        for end in ends:
            for last in ends[: ends.index(end)]:
                cost, sizes = best[last]
                cost += (below[end] - below[last]) * end
                longer[end] = min(longer[end], (cost, (*sizes, end)))
        best = longer
    return Sizes(best[ends[-1]][1], documents + 1)


def padded_to(batch: Batch, tokens: int, documents: int, pad_id: int) -> Inputs:
    """Return the encoder's inputs padded to `tokens` tokens in `documents` documents.

    The filler's positions are 0, so that no table of positions ends before it.
    """
    missing = tokens - batch.ids.shape[0]
    ends = batch.cu_seqlens.int()
    return (
        F.pad(batch.ids, (0, missing), value=pad_id),
        F.pad(batch.position, (0, missing)),
        F.pad(ends, (0, documents + 1 - ends.shape[0]), value=tokens),
    )


class SizedEncoder(nn.Module):
    """The encoder over flat batches of one number of tokens, as a module to capture."""

    def __init__(self, model: nn.Module, tokens: int, compute: torch.dtype):
        super().__init__()
        self.model, self.tokens, self.compute = model, tokens, compute

    def forward(self, ids: Tensor, position: Tensor, cu_seqlens: Tensor) -> Tensor:
        plain = unwrapped(self.model)
        encode = BACKBONES[plain.config.model_type].encode_flat
        assert encode is not None
        segments = Segments(
            backend="varlen",
            cu_seqlens=cu_seqlens,
            document=cu_seqlens,  # of dense masks alone
            longest=self.tokens,  # an upper limit: kernels read the lengths on the device
            runs=(),
            causal=attention_pattern(plain.config) == "causal",
        )
        half = self.compute != torch.float32
        # Casts that autocast keeps would belong to one graph's memory.
        with torch.autocast(ids.device.type, self.compute, enabled=half, cache_enabled=False):
            return encode(plain, ids[None], position[None], segments)[0]


def capture_on_gpu() -> Capture:
    """Return a capture of forward and backward as two graphs; all captures share memory."""
    pool = torch.cuda.graph_pool_handle()

    def capture(encoder: SizedEncoder, sample: Inputs) -> Encode:
        made: Any = torch.cuda.make_graphed_callables(
            encoder,
            sample,
            allow_unused_input=True,  # weights of the head
            pool=pool,
        )
        return made

    return capture


class EncoderGraphs:
    """Captured encoders of a module, by their number of tokens."""

    def __init__(
        self, module: DiffusionModel, sizes: Sizes, compute: torch.dtype, capture: Capture
    ):
        """Capture every size, the largest first: the others fit into its memory.

        Weights are on their device. No other thread may use it meanwhile: a capture forbids that.
        """
        self._sizes, self._pad_id = sizes, module.pad_id
        self._trained = _trained(module)
        device = self._trained[0].device
        self._encoders: dict[int, Encode] = {}
        for tokens in reversed(sizes.tokens):
            encoder = SizedEncoder(module.model, tokens, compute).train()
            nothing = torch.zeros(tokens, dtype=torch.long, device=device)
            ends = torch.zeros(sizes.documents + 1, dtype=torch.int32, device=device)
            sample = (nothing, nothing.clone(), ends.index_fill_(0, ends[:1].long() + 1, tokens))
            self._encoders[tokens] = capture(encoder, sample)

    def __call__(self, batch: Batch) -> Tensor | None:
        """Return hidden states [size, D], the batch's first; None for what must run uncaptured.

        A graph writes gradients to fixed addresses, where autograd leaves them until the update. So
        only the first micro-batch of a step may come from a graph.
        """
        size = self._sizes.fitting(batch)
        if size is None or self._trained[0].grad is not None:
            return None
        return self._encoders[size](*padded_to(batch, size, self._sizes.documents, self._pad_id))


def capture_encoder(
    module: DiffusionModel,
    make_step: Callable[[int], Step],
    steps: int,
    compute: torch.dtype,
    room: float,
    log: Callable[[str], None],
    make_capture: Callable[[], Capture] = capture_on_gpu,
) -> int:
    """Capture the module's encoder for the sizes of its run. Return the bytes that graphs hold.

    `make_step`: builds step i of `steps`, without side effects. `room`: bytes that graphs may hold
    in addition to the run. Where they cannot be used, one line says why, and the module stays as it is.
    """
    sample = [make_step(number) for number in _spread(steps, SAMPLED)]
    batches = [step.micro_batches[0].batch for step in sample if step.micro_batches]
    if not batches or any(len(step.micro_batches) > 1 for step in sample):
        log("cuda_graphs: off; a step has several micro-batches: raise tokens_per_batch")
        return 0
    trained = _trained(module)
    gradients = sum(weight.numel() * weight.element_size() for weight in trained)
    most = min(MOST_SIZES, int(room // gradients))
    if most < 1:
        log(f"cuda_graphs: off; one needs {gradients / 1e9:.2f} GB, {room / 1e9:.2f} GB are free")
        return 0
    tokens = [batch.ids.shape[0] for batch in batches]
    sizes = choose_sizes(tokens, max(batch.documents for batch in batches), most)
    try:
        graphs = EncoderGraphs(module, sizes, compute, make_capture())
        checked = [batch.to(trained[0].device) for batch in batches[:2]]
        with torch.autocast(trained[0].device.type, compute, enabled=compute != torch.float32):
            error = difference(module, graphs, checked)
    except RuntimeError as failure:  # out of memory is one
        log(f"cuda_graphs: off; the encoder could not be captured: {first_line(failure)}")
        return 0
    if error > TOLERANCE:
        log(f"cuda_graphs: off; captured, the encoder's gradients differ by {error:.2g}")
        return 0
    module.captured = graphs
    padded = sum(size for number in tokens if (size := sizes.above(number)))
    log(
        f"cuda_graphs: sizes of {', '.join(map(str, sizes.tokens))} tokens and at most"
        f" {sizes.documents - 1} documents; {1 - sum(tokens) / padded:.1%} of the tokens is filler"
    )
    return len(sizes.tokens) * gradients


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.requires_grad]


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` numbers below `count`, evenly spread from 0."""
    return [number * count // min(count, most) for number in range(min(count, most))]


def difference(module: DiffusionModel, graphs: EncoderGraphs, batches: Sequence[Batch]) -> float:
    """Return the largest relative difference, captured to not, of hidden states and gradients.

    Several batches, because a graph that keeps something of one may be right for it alone.
    """
    found: list[float] = []
    for batch in batches:
        results = [_played(module, batch, captured) for captured in (None, graphs)]
        for plain, other in zip(*results, strict=True):
            error = torch.linalg.vector_norm(other - plain) / torch.linalg.vector_norm(plain)
            found.append(error.item())
    # a comparison with NaN is false, so max() alone could pass one over
    return max(found) if all(map(math.isfinite, found)) else math.inf


def _played(
    module: DiffusionModel, batch: Batch, graphs: EncoderGraphs | None
) -> tuple[Tensor, Tensor]:
    """Return hidden states [N, D] and all gradients of a sum over them, one vector; float32."""
    module.train()
    module.captured = graphs
    try:
        hidden = module.hidden_states(batch)[: batch.ids.shape[0]]
        generator = torch.Generator().manual_seed(0)
        slope = torch.randn(hidden.shape, generator=generator).to(hidden)
        gradients = torch.autograd.grad(hidden, _trained(module), slope, allow_unused=True)
    finally:
        module.captured = None
    flat = [gradient.flatten().float() for gradient in gradients if gradient is not None]
    return hidden.detach().float(), torch.cat(flat)
