"""What a run needs of memory, told before it runs: one micro-batch forward and backward with
tensors that have shapes and no content.

torch's fake tensors go through the very code of the run (attention kernels, autocast,
recomputation), so nothing is modelled twice.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..batch import Batch
from ..models.diffusion import DiffusionModel, bare
from .layers import set_recompute
from .optimizer import state_bytes, update_bytes
from .sharding import gathered_bytes, gathered_dtype

KINDS = ("weights", "gradients", "optimizer", "activations", "logits")
# What a CPU's malloc keeps besides: holes that no tensor fits, 7 to 35 % of what lives
# (benches/LOG.md), as parent/launch.py has it set up.
CPU_HEAP = 0.2
CGROUP = Path("/sys/fs/cgroup")  # a container's own limit
ROOM = 0.92  # of a device's free memory: what a plan may use


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `peak` is when most is held; the kinds are each at their own highest.

    Of the peak, `heap` is what a CPU's malloc keeps besides: tensors alone take `peak - heap`.
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

    @property
    def biggest(self) -> str:
        return max(KINDS, key=lambda kind: asdict(self)[kind])


@dataclass(frozen=True)
class Setting:
    """How a model is trained, as far as memory goes."""

    device: torch.device
    compute: torch.dtype
    backend: str | None  # of packed documents; None pads
    optim: str
    accumulates: bool  # several micro-batches a step: gradients are held while the next one runs
    ranks: int = 1  # that the model is cut over, as `parallel` says
    parallel: str = "ddp"


class Tracker(TorchDispatchMode):
    """Bytes of live storages by kind, as operations create and lose them."""

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
        """A finished gradient is no longer an intermediate result."""
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
    model: nn.Module, batch: Batch, setting: Setting, recompute: str, *, four_bit_saves: int = 0
) -> Memory:
    """Memory of training `model` (on the meta device, dtypes and adapters as in the run) on
    micro-batches like `batch`.

    `four_bit_saves`: bytes that 4-bit layers are smaller than those that stand in for them here.
    """
    set_recompute(model, recompute, draws=False)  # a CUDA generator takes no fake state back
    with FakeTensorMode(allow_non_fake_inputs=True):
        # accelerate numbers the CPUs of several ranks, which nothing else does.
        device = torch.device("cpu") if setting.device.type == "cpu" else setting.device
        model = model.to_empty(device=device)
        bare(model).tie_weights()
        module = DiffusionModel(model, 0, setting.backend).train()
        batch = batch.to(
            device
        )  # on a CPU it stays real: a loop over documents reads their lengths
        held = [*module.parameters(), *module.buffers()]
        trained = [weight for weight in module.parameters() if weight.requires_grad]
        tracker = Tracker(
            bare(model).config.vocab_size, {one.untyped_storage()._cdata for one in held}
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
        weights = sum(one.numel() * one.element_size() for one in held) - four_bit_saves
        gradients = sum(weight.numel() * weight.element_size() for weight in trained)
        states = sum(state_bytes(weight, setting.optim) for weight in trained)
        gathered, last = gathered_bytes(
            module.model, setting.parallel, gathered_dtype(setting.device, setting.compute)
        )
    update = gradients + update_bytes(trained, setting.optim, setting.device)
    during = tracker.peak + (gradients if setting.accumulates else 0)
    if setting.ranks > 1:
        # This rank's share, and what is gathered on top: some weights, and the gradients of one
        # unit until they are cut.
        weights, states, update = (-(-size // setting.ranks) for size in (weights, states, update))
        weights += gathered
        spared = max(0, gradients - -(-gradients // setting.ranks) - last)
        gradients, during = gradients - spared, during - spared
    live = weights + states + max(during, update)
    heap = round(CPU_HEAP * live) if setting.device.type == "cpu" else 0
    return Memory(
        weights,
        gradients,
        states,
        tracker.highest["activations"],
        tracker.highest["logits"],
        heap=heap,
        peak=live + heap,
    )


def documents_of(tokens: int, longest: int) -> Batch:
    """A packed batch of `tokens` tokens in documents of at most `longest`, half of them masked: a
    stand-in by its size alone.
    """
    documents = -(-tokens // longest)
    return _alike(documents, -(-tokens // documents), tokens // 2)


def stand_in(batch: Batch) -> Batch:
    """A packed batch of as many tokens, documents and masked tokens, its documents all of one
    length: quicker to try, no smaller.
    """
    return _alike(batch.documents, -(-batch.ids.shape[0] // batch.documents), batch.masked.shape[0])


def _alike(documents: int, length: int, masked: int) -> Batch:
    place = torch.arange(documents * length)
    target = torch.zeros(masked, dtype=torch.long)
    return Batch(
        ids=torch.zeros_like(place),
        cu_seqlens=torch.arange(documents + 1) * length,
        position=place % length,
        document=place // length,
        masked=target,
        target=target,
        weight=torch.ones(masked),
        longest=length,
    )


def _autocast(setting: Setting) -> AbstractContextManager[object]:
    if setting.compute == torch.float32:
        return nullcontext()
    return torch.autocast(setting.device.type, dtype=setting.compute)


def free_bytes(device: torch.device) -> int:
    """Bytes that a run may take on this device: of a GPU, or of this machine (or container, where
    one sets a limit).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    available = psutil.virtual_memory().available
    limit = CGROUP / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()).isdigit():
        pages = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files read are counted as used and given back when asked for.
        used = int((CGROUP / "memory.current").read_text()) - int(pages["inactive_file"])
        available = min(available, int(most) - used)
    return available
