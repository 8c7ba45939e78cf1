"""Sharded models: sums and gradients of the full model, exact gathers, choices, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.support import ROOT, run_python
from helpers.tiny import (
    FAMILIES,
    PAD,
    adapted,
    assert_same_vector,
    gradient,
    in_order,
    pairs,
    random_documents,
    rules,
    slots,
    tiny_config,
    tiny_model,
    weights,
)
from safetensors.torch import load_file
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from plugin.assembly.model import model_shape
from plugin.assembly.resolve import choose_parallel
from plugin.base.errors import JobError
from plugin.batch import Batch
from plugin.config.params import SHARDED, Params
from plugin.config.parse import parse
from plugin.data.packing import Layout
from plugin.models.backbones import layers_of
from plugin.models.diffusion import DiffusionModel, Predictor, logits_of
from plugin.training.activation_checkpointing import (
    FULL,
    NONE,
    SELECTIVE,
    Recompute,
    set_activation_checkpointing,
)
from plugin.training.memory import Memory, Setting, estimate
from plugin.training.sharding import (
    gathered_bytes,
    gathered_dtype,
    gathered_model,
    meta_copy,
    reshard,
    shard,
    shared_predictor,
)
from plugin.training.step import build_step

CPU = torch.device("cpu")
PACKED = Layout(packed=True)


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """Open a group of one rank, which waits for nobody and runs every hook of FSDP2.

    test_sharded_runs.py has two ranks.
    """
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batch(packed: bool = True) -> Batch:
    layout = PACKED if packed else Layout()
    return (
        build_step(slots(6, 20), random_documents(20), rules(), batch_size=6, layout=layout)
        .micro_batches[0]
        .batch
    )


def module_of(model: Any, *, packed: bool = True) -> DiffusionModel:
    return DiffusionModel(model, PAD, "loop" if packed else None).train()


def cut(
    model: Any, parallel: str = "zero3", *, packed: bool = True, dtype: torch.dtype | None = None
) -> DiffusionModel:
    module = module_of(model, packed=packed)
    shard(module, CPU, 1, parallel, dtype)
    return module


def whole_gradient(module: DiffusionModel) -> torch.Tensor:
    parts = [
        weight.grad.full_tensor()
        for weight in module.parameters()
        if isinstance(weight.grad, DTensor)
    ]
    return torch.cat([part.flatten() for part in parts])


# --- forward and backward


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parallel", ["zero2", "zero3"])
def test_sums_and_gradients_are_those_of_the_full_model(family: str, parallel: str) -> None:
    plain, sharded = module_of(tiny_model(family)), cut(tiny_model(family), parallel)
    for module in (plain, sharded):
        for _ in range(2):  # gradients add up
            sums = module(batch())
            sums.weighted.sum().backward()
    ours, theirs = sharded(batch()), plain(batch())
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert all(
        isinstance(weight, DTensor) for weight in layers_of(sharded.model)[0].parameters()
    ) == (parallel == "zero3")
    ours.weighted.sum().backward()
    theirs.weighted.sum().backward()
    assert_same_vector(whole_gradient(sharded), gradient(plain), 1e-6)


@pytest.mark.parametrize("recompute", [FULL, SELECTIVE, Recompute("full", 1)], ids=str)
def test_recomputed_layers_are_gathered_again(recompute: Recompute) -> None:
    plain, model = module_of(tiny_model("modernbert")), tiny_model("modernbert")
    set_activation_checkpointing(model, recompute)
    sharded = cut(model)
    for module in (plain, sharded):
        module(batch()).weighted.sum().backward()
    assert_same_vector(whole_gradient(sharded), gradient(plain), 1e-6)


def test_frozen_base_with_adapter_has_adapter_gradients() -> None:
    plain, sharded = (adapted(tiny_model("llada"), "llada") for _ in range(2))
    theirs, ours = module_of(plain), cut(sharded)
    for module in (theirs, ours):
        module(batch()).weighted.sum().backward()
    learned = [weight.grad.flatten() for weight in theirs.parameters() if weight.grad is not None]
    assert len(learned) == sum(weight.requires_grad for weight in theirs.parameters()) > 0
    assert_same_vector(whole_gradient(ours), torch.cat(learned), 1e-6)


def test_layers_gathered_in_bfloat16_compute_what_autocast_does() -> None:
    """Masters and gradients stay float32, and only norm weights are rounded, as on a GPU.

    A CPU can run the norms of this family in bfloat16.
    """
    plain, sharded = module_of(tiny_model("llada")), cut(tiny_model("llada"), dtype=torch.bfloat16)
    seen: set[torch.dtype] = set()
    for layer in layers_of(sharded.model):
        layer.register_forward_pre_hook(
            lambda layer, _: seen.update(weight.dtype for weight in layer.parameters())
        )
    losses = []
    for module in (plain, sharded):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(module(batch()).weighted.sum())
        losses[-1].backward()
    assert seen == {torch.bfloat16}
    assert {weight.dtype for weight in sharded.parameters()} == {torch.float32} == {losses[1].dtype}
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-4)
    assert_same_vector(whole_gradient(sharded), gradient(plain), 1e-2)


def test_a_cpu_gathers_layers_as_they_are() -> None:
    assert gathered_dtype(CPU, torch.bfloat16) is None
    assert gathered_dtype(torch.device("cuda"), torch.bfloat16) == torch.bfloat16
    assert gathered_dtype(torch.device("cuda"), torch.float32) is None


@pytest.mark.parametrize("family", ["bert", "llada"])
def test_sharded_model_samples_like_the_full_model(family: str) -> None:
    sharded = cut(tiny_model(family), packed=False)
    ids = torch.randint(5, 40, (3, 12), generator=torch.Generator().manual_seed(1))
    places = torch.tensor([[0, 3], [1, 1], [2, 11]])
    asked = ids, torch.ones_like(ids, dtype=torch.bool), places
    logits = shared_predictor(sharded, torch.float32)(*asked)
    assert torch.equal(logits, Predictor(tiny_model(family))(*asked))
    assert not all(isinstance(weight, DTensor) for weight in sharded.parameters()), (
        "the root's are still gathered"
    )
    reshard(sharded)
    assert all(isinstance(weight, DTensor) for weight in sharded.parameters())


# --- gathered models


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["bert", "llada"])
def test_gathered_model_is_equal_and_keeps_tied_weights(
    family: str, tied: bool, tmp_path: Path
) -> None:
    plain, model = (tiny_model(family, tie_word_embeddings=tied) for _ in range(2))
    empty = meta_copy(model)
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
    sharded = cut(model)
    sharded(batch())
    whole = gathered_model(model, empty)
    assert whole is not None
    assert torch.equal(weights(whole), weights(plain))
    head, table = whole.get_output_embeddings(), whole.get_input_embeddings()
    assert (head.weight is table.weight) == tied
    ids = torch.arange(5, 20)[None]
    assert torch.equal(logits_of(whole, ids), logits_of(plain, ids))
    whole.save_pretrained(tmp_path / "whole")
    plain.save_pretrained(tmp_path / "plain")
    saved = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "plain")]
    assert saved[0].keys() == saved[1].keys()
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}, "nothing is kept"


def test_a_gathered_adapter_is_the_adapter(tmp_path: Path) -> None:
    plain, model = (adapted(tiny_model("bert"), "bert") for _ in range(2))
    empty = meta_copy(model)
    cut(model)
    whole = gathered_model(model, empty)
    assert whole is not None
    for name, one in (("whole", whole), ("plain", plain)):
        one.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
    saved = [
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "plain")
    ]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    assert any(weight.abs().sum() > 0 for name, weight in saved[0].items() if "lora_B" in name)


@pytest.mark.end_to_end
def test_two_ranks_gather_and_resume_as_one_process_would(tmp_path: Path) -> None:
    """Run helpers/two_ranks.py: three updates on unequal shares, gather, scatter, two updates."""
    tests = ROOT / "tests"
    start = f"import runpy, sys; sys.path[:0] = [{str(ROOT)!r}, {str(tests)!r}]; "
    done = run_python(
        start + f"runpy.run_path({str(tests / 'helpers' / 'two_ranks.py')!r}, run_name='__main__')",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["pieces"] == [[1, 3], [3, 3]], (
        "micro-batches of each rank, as dealt and evened out"
    )
    for parallel in ("zero2", "zero3"):
        assert facts[parallel]["weights off"] < 1e-6
        assert facts[parallel]["moved"] > 1e-2
        assert facts[parallel]["states"] > 0
        assert facts[parallel]["states off"] < 1e-6
        assert facts[parallel]["scattered"] == "the same bits"
        assert facts[parallel]["went on"] < 1e-6


# --- equal numbers of micro-batches


def test_idle_micro_batches_even_out_ranks_and_keep_counts() -> None:
    documents = pairs((4, 40), *[(2, 4)] * 7)
    ranks = [
        build_step(in_order(documents), documents, rules(), batch_size=3, rank=rank, ranks=2)
        for rank in (0, 1)
    ]
    evened = [
        build_step(
            in_order(documents), documents, rules(), batch_size=3, rank=rank, ranks=2, even=True
        )
        for rank in (0, 1)
    ]
    assert [len(step.micro_batches) for step in ranks] == [1, 3]
    assert [len(step.micro_batches) for step in evened] == [3, 3]
    assert [(step.count, step.masked, step.lengths) for step in evened] == [
        (s.count, s.masked, s.lengths) for s in ranks
    ]
    idle = evened[0].micro_batches[1:]
    assert [micro_batch.documents for micro_batch in idle] == [(), ()]
    assert all(micro_batch.batch.masked.numel() == 0 for micro_batch in idle)


def test_idle_micro_batch_gives_every_weight_a_zero_gradient() -> None:
    """Otherwise ranks would average different lists of gradients."""
    documents = pairs((4, 40), *[(2, 4)] * 7)
    step = build_step(
        in_order(documents), documents, rules(), batch_size=3, rank=0, ranks=2, even=True
    )
    for model in (tiny_model("bert"), adapted(tiny_model("llada"), "llada")):
        module = module_of(model)
        sums = module(step.micro_batches[-1].batch)
        sums.weighted.sum().backward()
        learned = [weight for weight in module.parameters() if weight.requires_grad]
        assert learned
        assert all(weight.grad is not None and not weight.grad.any() for weight in learned)


# --- choices and refusals


def chosen(ranks: int = 2, on_gpu: bool = True, fits: bool = True, **values: Any) -> str:
    params = Params.model_validate({"dataset_name": "d", "model_name": "m", **values})
    return choose_parallel(params, ranks=ranks, on_gpu=on_gpu, fits=lambda: fits)[0]


def test_auto_shards_only_what_does_not_fit() -> None:
    assert chosen(fits=True) == "ddp"
    assert chosen(fits=False) == "zero3"
    assert chosen(fits=False, on_gpu=False) == "ddp"
    assert chosen(fits=False, ranks=1) == "ddp"
    assert chosen(fits=False, dtype="float16") == "ddp"
    assert chosen(fits=False, optim="adamw_8bit") == "ddp"
    assert chosen(fits=False, float8=True) == "ddp"


def test_a_choice_is_kept() -> None:
    for parallel, wanted in {
        "ddp": "ddp",
        "zero2": "zero2",
        "zero3": "zero3",
        "fsdp2": "zero3",
    }.items():
        assert chosen(fits=False, parallel=parallel) == wanted
        assert chosen(fits=True, on_gpu=False, parallel=parallel) == wanted
        assert chosen(ranks=1, parallel=parallel) == "ddp"


@pytest.mark.parametrize("parallel", SHARDED)
@pytest.mark.parametrize(
    ("with_", "told"),
    [
        ({"optim": "adamw_8bit"}, "adamw_8bit"),
        ({"dtype": "float16"}, "float16"),
        ({"float8": True}, "float8"),
    ],
)
def test_option_without_sharding_is_refused_by_name(
    parallel: str, with_: dict[str, object], told: str
) -> None:
    job = {"dataset_name": "d", "model_name": "m", **with_}
    assert parse({**job, "parallel": "ddp"}).params.parallel == "ddp"
    with pytest.raises(JobError) as caught:
        parse({**job, "parallel": parallel})
    (problem,) = caught.value.problems
    assert (problem.field, problem.got, problem.code) == ("parallel", f"{parallel} with {told}", 2)


# --- memory


def test_gathered_bytes_worked_by_hand() -> None:
    """Width 16, 48 rows: table and head 768 each, last norm 16.

    A layer: two norms 16, q and out 256, k and v 128, three of 384.
    """
    model = tiny_model("llada", num_hidden_layers=3)
    root, layer = 2 * 768 + 16, 2 * 16 + 2 * 256 + 2 * 128 + 3 * 384
    assert gathered_bytes(model, "zero3", None) == (4 * (root + 2 * layer), 4 * layer)
    assert gathered_bytes(model, "zero2", None) == (4 * (root + 3 * layer), 4 * layer)
    assert gathered_bytes(model, "zero3", torch.bfloat16) == (4 * root + 2 * 2 * layer, 4 * layer)


@pytest.mark.slow
def test_the_estimate_of_a_share() -> None:
    params = Params.model_validate({"dataset_name": "d", "model_config": "c", "parallel": "zero3"})

    def estimated(ranks: int) -> Memory:
        model, _ = model_shape(params, tiny_config("llada", num_hidden_layers=8), torch.float32)
        setting = Setting(
            CPU, torch.float32, "loop", "adamw", accumulates=False, ranks=ranks, parallel="zero3"
        )
        return estimate(model, batch(), setting, NONE)

    alone, shared = estimated(1), estimated(4)
    layer, root = 4 * 1952, 4 * 1552
    assert alone.weights == alone.gradients == root + 8 * layer
    assert shared.weights == alone.weights / 4 + root + 2 * layer
    assert shared.gradients == alone.gradients / 4 + layer
    assert shared.optimizer == pytest.approx(alone.optimizer / 4, rel=1e-3)
    assert (shared.activations, shared.logits) == (alone.activations, alone.logits)
    saved = sum(
        getattr(alone, kind) - getattr(shared, kind)
        for kind in ("weights", "gradients", "optimizer")
    )
    live = [found.peak - found.heap for found in (alone, shared)]
    assert live[0] - live[1] == pytest.approx(saved, abs=1)
