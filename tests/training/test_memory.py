"""Memory estimate: exact where it can be computed by hand, within bounds on full runs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from helpers.support import ROOT, run_python
from helpers.tiny import KNOWN, tiny_config, tiny_model

from plugin.assembly.model import model_shape
from plugin.config.params import Params
from plugin.models import head
from plugin.models.configuration import load_config, switch_off_dropout
from plugin.models.load import build_model, load_model
from plugin.models.lora import LoraSettings, add_adapter, four_bit_saves
from plugin.parent.launch import plan_launch
from plugin.training.activation_checkpointing import NONE, Recompute
from plugin.training.memory import Memory, Setting, documents_of, estimate, stand_in
from plugin.training.meters import memory_by_category
from plugin.training.optimizer import make_optimizer, state_bytes, update_bytes

CPU = torch.device("cpu")
PLAIN = Setting(CPU, torch.float32, "loop", "adamw", accumulates=False)
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
ELSEWHERE = torch.device("meta")  # stands for a GPU: another device than the batch comes from


def shape(
    family: str = "llada", dtype: torch.dtype = torch.float32, *, lora: bool = False, **changes: Any
) -> Any:
    with torch.device("meta"):
        config = tiny_config(family, **{**WIDE, **changes})
        switch_off_dropout(config)
        model = build_model(config).to(dtype)
        return (
            add_adapter(model, KNOWN[family], LoraSettings(4, 8, 0.0, "auto"), [])
            if lora
            else model
        )


def estimated(
    tokens: int = 400, setting: Setting = PLAIN, mode: str = "none", **how: Any
) -> Memory:
    return estimate(shape(**how), documents_of(tokens, 40), setting, Recompute(mode))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable autocast, which the meta device lacks even when it is off."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def size_of(weights: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def test_rows_with_noisy_copies_hold_their_masks() -> None:
    """Two rows of 512 tokens: a mask of bytes, and one of float32 for each of the two layers."""
    plain, rows = (
        estimate(
            shape("llama", max_position_embeddings=1024),
            documents_of(1024, 512, copies=copies),
            PLAIN,
            NONE,
        )
        for copies in (False, True)
    )
    pairs = 2 * 512 * 512
    assert pairs * 2 * 4 <= rows.activations - plain.activations <= pairs * (1 + 2 * 4)
    batch = documents_of(1024, 512, copies=True)
    assert stand_in(batch).copies
    assert stand_in(documents_of(1024, 512)).copies is None


# --- optimizers


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [100, 4095, 4096, 100_001])
def test_optimizer_state_bytes_are_exact(kind: str, dtype: torch.dtype, count: int) -> None:
    weight = torch.nn.Parameter(torch.ones(count, 1, dtype=dtype))
    module = torch.nn.ParameterList([weight])
    optimizer = make_optimizer(module, kind=kind, learning_rate=0.1, weight_decay=0.0, seed=0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    own = [
        value
        for name, value in optimizer.state[weight].items()
        if isinstance(value, torch.Tensor) and "qmap" not in name
    ]
    assert size_of(own) == state_bytes(weight, kind)
    tables = size_of(
        value for name, value in optimizer.state[weight].items() if "qmap" in name
    )  # for all weights together
    assert (
        memory_by_category(module, optimizer, 0, 0)["optimizer"]
        == state_bytes(weight, kind) + tables
    )
    assert tables <= 2048


def test_update_bytes_are_those_of_the_largest_weight() -> None:
    weights = [torch.nn.Parameter(torch.ones(size, dtype=torch.bfloat16)) for size in (3, 1000, 7)]
    assert update_bytes(weights, "adamw", CPU) == 0
    assert update_bytes([], "adamw_8bit", CPU) == 0
    assert update_bytes(weights, "adamw_8bit", ELSEWHERE) == 14 * 1000
    assert update_bytes(weights, "adamw_8bit", CPU) > update_bytes(weights, "adamw_8bit", ELSEWHERE)


# --- estimates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optim", ["adamw", "adamw_8bit"])
def test_estimate_of_weights_gradients_states_is_exact(dtype: torch.dtype, optim: str) -> None:
    found = estimated(setting=replace(PLAIN, optim=optim, compute=dtype), dtype=dtype)
    model = tiny_model("llada", **WIDE).to(dtype)
    assert found.weights == found.gradients == size_of(model.parameters())
    assert found.optimizer == sum(state_bytes(weight, optim) for weight in model.parameters())


def test_estimate_of_adapter_trains_the_adapter_alone() -> None:
    base, whole = estimated(), estimated(lora=True)
    adapter = size_of(weight for weight in shape(lora=True).parameters() if weight.requires_grad)
    assert (whole.weights, whole.gradients) == (base.weights + adapter, adapter)
    assert whole.optimizer < 0.2 * base.optimizer


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loop", None], ids=["packed", "padded"])
def test_estimate_grows_with_tokens(backend: str | None) -> None:
    setting = replace(PLAIN, backend=backend)
    less, more = (estimated(tokens, setting).activations for tokens in (400, 800))
    assert more / less == pytest.approx(2, rel=0.2), "tokens are what activations grow with"
    wide = {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
    }  # enough terms for selective to keep a product
    none, selective, full = (
        estimated(800, setting, mode, **wide) for mode in ("none", "selective", "full")
    )
    assert none.activations > 1.2 * selective.activations
    assert selective.activations > 1.2 * full.activations
    assert none.peak > selective.peak > full.peak


def test_estimate_of_logits_is_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head.BUFFER, "cpu", 1 << 20)
    small, large = (
        estimated(tokens, vocab_size=2000, embedding_size=2000).logits for tokens in (1000, 4000)
    )
    assert small == pytest.approx(1 << 20, rel=0.1)
    assert large == pytest.approx(1 << 20, rel=0.1)
    assert 10 * large < 4000 // 2 * 2000 * 4, "all of them at once would be far more"


@pytest.mark.usefixtures("elsewhere")
def test_estimate_holds_gradients_across_micro_batches() -> None:
    elsewhere = replace(PLAIN, device=ELSEWHERE, backend="dense")
    once, adds = (
        estimated(setting=replace(elsewhere, accumulates=several)) for several in (False, True)
    )
    assert once.peak < adds.peak <= once.peak + adds.gradients
    assert adds.peak >= adds.weights + adds.optimizer + adds.gradients


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("family", "backend", "mode"),
    [
        ("bert", "varlen", "selective"),
        ("roberta", None, "full"),
        ("modernbert", "varlen", "full"),
        ("modernbert", "dense", "none"),
        ("llada", "varlen", "selective"),
        ("Dream", None, "selective"),
    ],
)
def test_estimate_on_another_device_than_the_batch(
    family: str, backend: str | None, mode: str
) -> None:
    setting = Setting(ELSEWHERE, torch.float32, backend, "adamw", accumulates=False)
    half = {"dtype": torch.bfloat16, "lora": mode == "full"}  # as varlen's kernels need
    found = estimate(shape(family, **half), documents_of(200, 40), setting, Recompute(mode))
    assert found.peak > found.weights > 0
    assert found.activations > 0


@pytest.mark.parametrize("backend", ["loop", None], ids=["packed", "padded"])
def test_estimate_ignores_the_number_of_a_cpu(backend: str | None) -> None:
    """accelerate numbers their device."""
    first = replace(PLAIN, backend=backend, device=torch.device("cpu", 0))
    assert estimated(setting=first) == estimated(setting=replace(PLAIN, backend=backend))


def test_stand_in_batch_has_the_same_size() -> None:
    ragged = documents_of(397, 40)
    alike = stand_in(ragged)
    assert alike.documents == 10
    assert 397 <= alike.ids.shape[0] < 397 + 10
    assert alike.masked.shape[0] == 198
    assert alike.cu_seqlens.tolist() == list(range(0, 401, 40))


# --- 4-bit bases


def quantised_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all weights and of 4-bit scales, nested ones included."""
    total = size_of(model.parameters())
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            state: Any = layer.weight.quant_state
            total += size_of(
                [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            )
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bit_estimate_is_within_one_percent(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_model(
        "bert", hidden_size=512, intermediate_size=1024, num_attention_heads=4
    ).save_pretrained(tmp_path)
    plain = load_model(str(tmp_path), dtype=dtype)
    foretold = size_of(plain.parameters()) - four_bit_saves(plain, KNOWN["bert"])
    real = quantised_bytes(load_model(str(tmp_path), dtype=dtype, four_bit=True))
    assert foretold == pytest.approx(real, rel=0.01)
    assert real < 0.4 * size_of(plain.parameters())
    params = Params(model_name=str(tmp_path), lora=True, load_in_4bit=True, lora_r=1)
    model, saves = model_shape(params, load_config(str(tmp_path)), dtype)
    assert size_of(model.parameters()) - saves == pytest.approx(real, rel=0.02)


# --- the promise


# Prints the peak growth in bytes of a process in a few steps of each training, in full or with an
# adapter; malloc returns everything in between. The kernel's count is read, since getrusage begins
# with the memory of the process that started this one. A first step loads code, which is no tensor.
MEASURED = """\
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from training.test_memory import BATCHES, build, documents_of
from plugin.models.diffusion import DiffusionModel
from plugin.training.optimizer import make_optimizer

def status(name):
    return 1024 * int(dict(line.split(":", 1) for line in open("/proc/self/status"))[name].split()[0])

def grown(lora, batches=BATCHES):
    open("/proc/self/clear_refs", "w").write("5")  # the highest mark begins anew
    before = status("VmRSS")
    module = DiffusionModel(build(lora), 0, "loop").train()
    optimizer = make_optimizer(module, kind="adamw", learning_rate=1e-4, weight_decay=0.0, seed=0)
    for tokens, longest in batches:
        module(documents_of(tokens, longest)).weighted.sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return status("VmHWM") - before

torch.set_num_threads(1)
grown(False, [(40, 40)])
print(*map(grown, {loras}))
"""
# Narrow layers: much memory for little work.
LARGE: dict[str, Any] = {
    "family": "modernbert",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
}
LARGE |= {
    "num_hidden_layers": 8,
    "vocab_size": 20_000,
    "max_position_embeddings": 512,
    "local_attention": 128,
}
BATCHES = (
    (2880, 128),
    (2800, 90),
)  # (tokens, those of a document): no two steps of a run are alike
# malloc then returns every tensor immediately. By default it keeps 5 to 30 % more, another share in
# every run: benches/LOG.md.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def build(lora: bool) -> Any:
    model = build_model(tiny_config(**LARGE))
    return (
        add_adapter(model, KNOWN["modernbert"], LoraSettings(8, 16, 0.0, "auto"), [])
        if lora
        else model
    )


def grown(where: Path, env: dict[str, str], *loras: bool) -> list[int]:
    """Return the growth in bytes of each training, in full or with an adapter, under that malloc."""
    done = run_python(
        MEASURED.format(root=str(ROOT), tests=str(ROOT / "tests"), loras=loras),
        cwd=where,
        env=env,
        timeout_s=120,
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def foretold(lora: bool) -> Memory:
    with torch.device("meta"):
        model = build(lora)
    return estimate(model, documents_of(*BATCHES[0]), PLAIN, NONE)


linux_counts = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux counts there"
)


@pytest.mark.slow
@linux_counts
def test_tensor_estimate_is_within_five_percent(
    tmp_path: Path,
) -> None:
    for lora, taken in zip((False, True), grown(tmp_path, GIVES_BACK, False, True), strict=True):
        found = foretold(lora)
        assert found.peak > found.peak - found.heap > 300e6
        assert found.peak - found.heap == pytest.approx(taken, rel=0.05)


@pytest.mark.slow
@linux_counts
def test_process_estimate_is_within_a_quarter(
    tmp_path: Path,
) -> None:
    (rank,) = plan_launch(Params(), tmp_path, (), 0, {}).ranks
    (in_full,) = grown(tmp_path, {"GLIBC_TUNABLES": rank["GLIBC_TUNABLES"]}, False)
    assert foretold(lora=False).peak == pytest.approx(in_full, rel=0.25)
