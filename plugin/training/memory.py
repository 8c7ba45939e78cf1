"""Memory estimate of a run: one micro-batch forward and backward on fake tensors.

torch's fake tensors have shapes and no content. They pass through the code of the run (attention
kernels, autocast, activation checkpointing), so that nothing is modelled twice.
torch.distributed._tools.MemTracker measures the same, but is private.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..batch import Batch, Copies
from ..models.backbones import unwrapped
from ..models.diffusion import DiffusionModel
from .activation_checkpointing import Recompute, set_activation_checkpointing
from .optimizer import state_bytes, update_bytes
from .sharding import gathered_bytes, gathered_dtype

KINDS = ("weights", "gradients", "optimizer", "activations", "logits")
# Heap fragmentation on a CPU as a share of live memory: 7 to 35 % was measured with the allocator
# settings of parent/launch.py (benches/LOG.md).
CPU_HEAP = 0.2
CGROUP = Path("/sys/fs/cgroup")  # holds a container's memory limit
ROOM = 0.92  # share of a device's free memory that a plan may use


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device: the highest of each kind, and the highest of their sum, `peak`.

    `peak` includes `heap`, the fragmentation of a CPU's heap: tensors alone need `peak - heap`.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    heap: int
    peak: int

    def as_json(self) -> dict[str, int]:
        return asdict(self)

    def holding(self, gradients: int) -> Memory:
        """Return this memory with more bytes of gradients, which CUDA graphs hold."""
        more = {"gradients": self.gradients + gradients, "peak": self.peak + gradients}
        return replace(self, **more)

    @property
    def biggest(self) -> str:
        return max(KINDS, key=lambda kind: asdict(self)[kind])


@dataclass(frozen=True)
class Setting:
    """The settings of a run on which its memory depends."""

    device: torch.device
    compute: torch.dtype
    backend: str | None  # attention over packed documents; None pads
    optim: str
    accumulates: bool  # several micro-batches a step: gradients are held while the next one runs
    ranks: int = 1  # over which the model is sharded, as `parallel` says
    parallel: str = "ddp"


class Tracker(TorchDispatchMode):
    """Bytes of live storages by kind, while operations create and free them."""

    def __init__(self, vocabulary: int, known: set[int]):
        super().__init__()
        self._vocabulary, self._known = vocabulary, known
        self._live: dict[int, tuple[str, int]] = {}
        self.held: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.highest: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def becomes_gradient(self, weight: Tensor) -> None:
        """Count a finished gradient as a gradient and no longer as an activation."""
        assert weight.grad is not None
        key = weight.grad.untyped_storage()._cdata
        if key in self._live:
            self._add(*self._live[key], sign=-1)
            self._live[key] = ("gradients", self._live[key][1])
            self._add(*self._live[key])

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or key in self._known:
            return
        logits = tensor.ndim == 2 and tensor.shape[-1] == self._vocabulary
        self._live[key] = ("logits" if logits else "activations", storage.nbytes())
        self._add(*self._live[key])
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._add(*self._live.pop(key), sign=-1)

    def _add(self, kind: str, size: int, sign: int = 1) -> None:
        self.held[kind] += sign * size
        self.highest[kind] = max(self.highest[kind], self.held[kind])
        self.peak = max(self.peak, sum(self.held.values()))


def estimate(
    model: nn.Module,
    batch: Batch,
    setting: Setting,
    recompute: Recompute,
    *,
    four_bit_saves: int = 0,
) -> Memory:
    """Return the memory of training `model` on micro-batches like `batch`.

    `model` is on the meta device, with dtypes and adapters as in the run. `four_bit_saves`: bytes
    by which 4-bit layers are smaller than their stand-ins here.
    """
    # a CUDA generator's state cannot be restored from a fake one
    set_activation_checkpointing(model, recompute, draws=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        # accelerate numbers the CPUs of several ranks (cpu:1), which torch does not accept here
        device = torch.device("cpu") if setting.device.type == "cpu" else setting.device
        model = model.to_empty(device=device)
        unwrapped(model).tie_weights()
        module = DiffusionModel(model, 0, setting.backend).train()
        # on a CPU it stays real: a loop over documents reads their lengths
        batch = batch.to(device)
        held = [*module.parameters(), *module.buffers()]
        trained = [weight for weight in module.parameters() if weight.requires_grad]
        tracker = Tracker(
            unwrapped(model).config.vocab_size,
            {tensor.untyped_storage()._cdata for tensor in held},
        )
        if setting.accumulates:
            for weight in trained:
                weight.grad = torch.zeros_like(weight)
        for weight in trained:
            weight.register_post_accumulate_grad_hook(tracker.becomes_gradient)
        with tracker:
            with _autocast(setting):
                loss = module(batch).weighted.sum()
            loss.backward()
            del loss
        weights = sum(tensor.numel() * tensor.element_size() for tensor in held) - four_bit_saves
        gradients = sum(weight.numel() * weight.element_size() for weight in trained)
        states = sum(state_bytes(weight, setting.optim) for weight in trained)
        gathered, last = gathered_bytes(
            module.model, setting.parallel, gathered_dtype(setting.device, setting.compute)
        )
    update = gradients + update_bytes(trained, setting.optim, setting.device)
    during = tracker.peak + (gradients if setting.accumulates else 0)
    if setting.ranks > 1:
        # This rank's shard, plus the gathered weights, plus the gradients of one unit until they
        # are sharded.
        weights, states, update = (-(-size // setting.ranks) for size in (weights, states, update))
        weights += gathered
        spared = max(0, gradients - -(-gradients // setting.ranks) - last)
        gradients, during = gradients - spared, during - spared
    live = weights + states + max(during, update)
    heap = round(CPU_HEAP * live) if setting.device.type == "cpu" else 0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=states,
        activations=tracker.highest["activations"],
        logits=tracker.highest["logits"],
        heap=heap,
        peak=live + heap,
    )


def documents_of(
    tokens: int, longest: int, *, predicted: float = 0.5, copies: bool = False
) -> Batch:
    """Return a packed batch of `tokens` tokens in documents of <= `longest`.

    `predicted`: share of the tokens that are masked, or predicted without. `copies`: documents are
    rows with noisy copies. Only sizes mean something.
    """
    documents = -(-tokens // longest)
    return _alike(documents, -(-tokens // documents), int(predicted * tokens), copies=copies)


def stand_in(batch: Batch) -> Batch:
    """Return a packed batch of the same size with documents of equal length.

    It has as many tokens, documents and masked tokens. It runs faster and needs no less memory.
    """
    length = -(-batch.ids.shape[0] // batch.documents)
    copies = batch.copies is not None
    return _alike(batch.documents, length, batch.masked.shape[0], copies=copies)


def _alike(documents: int, length: int, masked: int, *, copies: bool) -> Batch:
    place = torch.arange(documents * length)
    target = torch.zeros(masked, dtype=torch.long)
    # A row that is all clean: its mask takes the room of any other.
    clean = Copies(torch.zeros_like(place), torch.full_like(place, length), target)
    return Batch(
        ids=torch.zeros_like(place),
        cu_seqlens=torch.arange(documents + 1) * length,
        position=place % length,
        document=place // length,
        masked=target,
        target=target,
        weight=torch.ones(masked),
        longest=length,
        copies=clean if copies else None,
    )


def _autocast(setting: Setting) -> AbstractContextManager[object]:
    if setting.compute == torch.float32:
        return nullcontext()
    return torch.autocast(setting.device.type, dtype=setting.compute)


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a GPU, or of this machine within its container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    available = psutil.virtual_memory().available
    limit = CGROUP / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()).isdigit():
        pages = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Cached pages of files count as used, but the kernel frees them on demand.
        used = int((CGROUP / "memory.current").read_text()) - int(pages["inactive_file"])
        available = min(available, int(most) - used)
    return available
