"""Reads of the device: one a step, for any number of micro-batches.

A CPU never waits, so the test counts the operations that would wait: those that return a number to
Python or turn a tensor into Python's or numpy's values. (A packed run on a CPU loops over documents
and reads their lengths; the backends of a GPU do not.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.tiny import (
    FAMILIES,
    PAD,
    adapted,
    cpu,
    meters,
    random_documents,
    rules,
    slots,
    tiny_model,
)
from torch.utils._python_dispatch import TorchDispatchMode

from plugin.data.packing import Layout
from plugin.models.diffusion import DiffusionModel
from plugin.training.activation_checkpointing import FULL, set_activation_checkpointing
from plugin.training.loop import Cadence, Hooks, Progress, Requests, Trainer, train
from plugin.training.lr_schedule import Schedule
from plugin.training.step import Step, build_step

DOCUMENTS = random_documents(40)
STEPS, STEP_SIZE = 3, 8
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.is_nonzero,
    aten.equal,
    aten.masked_select,
    aten.unique_dim,
    aten._unique2,
}
METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")


class Reads(TorchDispatchMode):
    """Counter of operations whose result or shape is known only after the device has answered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in READS:
            self.seen[str(func)] += 1
        found = (entry for arg in args if isinstance(arg, list | tuple) for entry in arg)
        if func.overloadpacket == aten.index and any(
            isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in found
        ):
            self.seen["a boolean index"] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], Counter[str]]:
    """Return a function that counts the reads during `work()`, by operation."""

    def counted(work: Callable[[], object]) -> Counter[str]:
        mode, depth = Reads(), [0]

        def spy(name: str) -> Callable[..., Any]:
            plain = getattr(torch.Tensor, name)

            def method(self: torch.Tensor, *args: Any) -> Any:
                if not depth[0]:  # tolist may call item: one read
                    mode.seen[name] += 1
                depth[0] += 1
                try:
                    return plain(self, *args)
                finally:
                    depth[0] -= 1

            return method

        with pytest.MonkeyPatch.context() as patch:
            for name in METHODS:
                patch.setattr(torch.Tensor, name, spy(name))
            with mode:
                work()
        return mode.seen

    return counted


def make_steps(batch_size: int, packed: bool, device: torch.device | None = None) -> list[Step]:
    """Build the steps in advance, as the prefetching thread does."""
    return [
        build_step(
            slots(STEP_SIZE, 40, step=step),
            DOCUMENTS,
            rules(),
            batch_size=batch_size,
            layout=Layout(packed, tokens),
        )
        for step in range(STEPS)
        for tokens in [None if batch_size == STEP_SIZE or not packed else 48]
    ]


def trainer(model: Any, steps: list[Step], backend: str | None) -> Callable[[], object]:
    """Return a run of the loop over `steps`, with its module and optimizer."""
    accelerator = cpu()
    module, optimizer = accelerator.prepare(
        DiffusionModel(model, PAD, backend), torch.optim.SGD(model.parameters(), lr=0.1)
    )
    scheduler = Schedule(optimizer.optimizer, lambda step: 1.0)

    def nothing(*_: Any) -> None:
        pass

    hooks = Hooks(Requests, nothing, nothing, nothing, nothing, nothing)
    cadence = Cadence(steps=len(steps), log_every=100, eval_every=0, save_every=100)
    moved = Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=optimizer,
        scheduler=scheduler,
        max_grad_norm=1.0,
    )
    return lambda: train(moved, steps.__getitem__, cadence, hooks, meters(accelerator), Progress())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", [None, "dense"], ids=["padded", "packed"])
@pytest.mark.parametrize("how", ["full", "lora and recompute"])
def test_step_reads_once_for_any_number_of_micro_batches(
    family: str,
    backend: str | None,
    how: str,
    reads: Callable[[Callable[[], object]], Counter[str]],
) -> None:
    found, micro_batches = [], []
    for batch_size in (STEP_SIZE, 2):
        model: Any = tiny_model(family)
        if how != "full":
            model = adapted(model, family, dropout=0.1)
            set_activation_checkpointing(model, FULL)
        steps = make_steps(batch_size, backend is not None)
        micro_batches.append(sum(len(step.micro_batches) for step in steps))
        found.append(reads(trainer(model, steps, backend)))
    assert micro_batches[0] == STEPS
    assert micro_batches[1] >= 3 * STEPS
    assert found[0] == found[1] == {"tolist": STEPS}, "the one of loop._read"


def test_reads_of_the_device_are_counted(
    reads: Callable[[Callable[[], object]], Counter[str]],
) -> None:
    """The loop over documents, used on a CPU, reads their lengths: once more a micro-batch."""
    steps = make_steps(2, True)
    micro_batches = sum(len(step.micro_batches) for step in steps)
    assert reads(trainer(tiny_model("llada"), steps, "loop")) == {"tolist": STEPS + micro_batches}
    ones = torch.ones(3)
    assert reads(lambda: ones[ones > 0].sum().item()) == {
        "a boolean index": 1,
        "item": 1,
        "aten._local_scalar_dense.default": 1,
    }
    assert reads(lambda: bool(ones.sum() > 1))["__bool__"] == 1


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA GPU: there torch itself raises at a synchronisation",
)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", [None, "dense", "varlen"])
def test_forward_and_backward_never_synchronise(family: str, backend: str | None) -> None:
    device, half = torch.device("cuda"), backend == "varlen"
    model = tiny_model(family).to(device, torch.bfloat16 if half else torch.float32)
    module = DiffusionModel(model, PAD, backend).train()
    batches = [
        step.micro_batches[0].batch.pinned() for step in make_steps(STEP_SIZE, backend is not None)
    ]
    module(batches[0].to(device)).weighted.sum().backward()  # kernels are loaded, workspaces made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            module(batch.to(device)).weighted.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
