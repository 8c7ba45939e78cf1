"""Causal models: equal to transformers' Llama and Qwen2, alone, packed, padded and accumulated.

LLaDA's and Dream's weights are Llama's and Qwen2's under other names, so that their causal forms
have an oracle that shares no line with them.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.support import run_python
from helpers.tiny import (
    MASK,
    PAD,
    SEP,
    assert_same_vector,
    gradient,
    random_documents,
    rules,
    slots,
    tiny_config,
    tiny_model,
    word_tokenizer,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from plugin.batch import Batch
from plugin.config.sampler import token_by_token
from plugin.data.packing import PADDED, Layout
from plugin.models.attention import Segments
from plugin.models.backbones import BACKBONES
from plugin.models.configuration import logit_shift, set_attention
from plugin.models.diffusion import DiffusionModel, Predictor, logits_of
from plugin.models.flops import count_flops
from plugin.models.load import load_model
from plugin.models.publish import write_model
from plugin.objectives.causal import next_tokens, weight_one
from plugin.objectives.masked import WholeDocuments
from plugin.run.facts import ModelFacts
from plugin.sampling.generate import generate
from plugin.sampling.request import Request, Vocabulary
from plugin.training.step import Step, build_step

FAMILIES = ("llada", "Dream")
DOCUMENTS = random_documents(8, longest=24)
RULES = replace(rules(weight=weight_one(None)), noising=WholeDocuments(next_tokens))
every_family = pytest.mark.parametrize("family", FAMILIES)
every_layout = pytest.mark.parametrize("backend", ["loop", "dense", None])

_NAMES = (
    (r"model\.transformer\.wte", "model.embed_tokens"),
    (r"model\.transformer\.ln_f", "model.norm"),
    (r"model\.transformer\.ff_out", "lm_head"),
    (r"model\.transformer\.blocks\.(\d+)\.(q|k|v)_proj", r"model.layers.\1.self_attn.\2_proj"),
    (r"model\.transformer\.blocks\.(\d+)\.attn_out", r"model.layers.\1.self_attn.o_proj"),
    (r"model\.transformer\.blocks\.(\d+)\.ff_proj", r"model.layers.\1.mlp.gate_proj"),
    (r"model\.transformer\.blocks\.(\d+)\.up_proj", r"model.layers.\1.mlp.up_proj"),
    (r"model\.transformer\.blocks\.(\d+)\.ff_out", r"model.layers.\1.mlp.down_proj"),
    (r"model\.transformer\.blocks\.(\d+)\.attn_norm", r"model.layers.\1.input_layernorm"),
    (r"model\.transformer\.blocks\.(\d+)\.ff_norm", r"model.layers.\1.post_attention_layernorm"),
)


def causal_model(family: str, **changes: Any) -> Any:
    model = tiny_model(family, **changes)
    set_attention(model.config, "causal")
    return model


def oracle(model: Any) -> Any:
    """Return transformers' causal model with the same weights."""
    config = model.config
    shape = {
        "vocab_size": model.get_input_embeddings().weight.shape[0],
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": False,
    }
    llama = config.model_type == "llada"
    plain: Any = (
        LlamaForCausalLM(LlamaConfig(**shape)) if llama else Qwen2ForCausalLM(Qwen2Config(**shape))
    )
    state = model.state_dict()
    for pattern, name in _NAMES if llama else ():
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    plain.load_state_dict(state)
    return plain.eval()


def step(layout: Layout = PADDED, batch_size: int = 8, **how: Any) -> Step:
    return build_step(slots(8, 8), DOCUMENTS, RULES, batch_size=batch_size, layout=layout, **how)


def plain_loss(model: Any) -> Tensor:
    """Return transformers' loss: shifted cross-entropy of answers, over all their tokens."""
    total, count = torch.zeros(()), 0
    for document in (DOCUMENTS[number] for number in range(8)):
        ids = torch.tensor(document.ids.astype("int64"))
        learned = torch.tensor(document.supervised)[1:]
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits[learned], ids[1:][learned], reduction="sum")
        count += int(learned.sum())
    return total / count


def loss_of(module: nn.Module, made: Step) -> Tensor:
    sums = [module(micro_batch.batch).weighted.sum() for micro_batch in made.micro_batches]
    return torch.stack(sums).sum() / made.count


@every_family
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_logits_are_those_of_transformers(family: str, implementation: str) -> None:
    model = causal_model(family)
    model.set_attn_implementation(implementation)
    ids = torch.randint(5, 40, (3, 17), generator=torch.Generator().manual_seed(1))
    wanted = oracle(model)(input_ids=ids, use_cache=False).logits
    got = model(input_ids=ids).logits
    assert (got[:, 1:] - wanted[:, :-1]).abs().max() < 1e-5
    full = tiny_model(family)(input_ids=ids).logits
    assert (got - full).abs().max() > 0.1, "or nothing was causal"


@every_family
@every_layout
def test_loss_is_the_reference_in_every_layout(family: str, backend: str | None) -> None:
    model = causal_model(family)
    wanted = plain_loss(oracle(model))
    made = step(PADDED if backend is None else Layout(True))
    module = DiffusionModel(model, PAD, backend)
    assert abs(loss_of(module, made) - wanted) <= 1e-6 * wanted


@every_family
@every_layout
def test_gradient_is_that_of_transformers(family: str, backend: str | None) -> None:
    model = causal_model(family)
    plain = oracle(model)
    plain_loss(plain).backward()
    loss_of(DiffusionModel(model, PAD, backend), step(Layout(backend is not None))).backward()
    wanted = {"lm_head": plain.lm_head.weight.grad, "embed": plain.model.embed_tokens.weight.grad}
    got = {
        "lm_head": model.get_output_embeddings().weight.grad,
        "embed": model.get_input_embeddings().weight.grad,
    }
    for name in wanted:
        assert_same_vector(got[name].flatten(), wanted[name].flatten())


@every_family
def test_packed_padded_and_accumulated_gradients_are_equal(family: str) -> None:
    found: list[Tensor] = []
    for backend, batch_size in (("loop", 8), ("dense", 8), (None, 8), (None, 2), ("loop", 3)):
        model = causal_model(family)
        made = step(Layout(backend is not None), batch_size)
        assert len(made.micro_batches) > 1 or batch_size == 8
        loss_of(DiffusionModel(model, PAD, backend), made).backward()
        found.append(gradient(model))
    for other in found[1:]:
        assert_same_vector(other, found[0])


@every_family
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_future_token_changes_no_earlier_logit(family: str, implementation: str) -> None:
    model = causal_model(family)
    model.set_attn_implementation(implementation)
    ids = torch.randint(5, 40, (1, 12), generator=torch.Generator().manual_seed(2))
    before = model(input_ids=ids).logits[0]
    for place in range(1, 12):
        edited = ids.clone()
        edited[0, place] = 5 + (int(ids[0, place]) - 4) % 35
        after = model(input_ids=edited).logits[0]
        # logits at a place predict its token from those before: its own edit shows one later
        assert torch.equal(after[: place + 1], before[: place + 1])
        assert place == 11 or not torch.equal(after[place + 1], before[place + 1])


@every_family
@pytest.mark.parametrize("backend", ["loop", "dense"])
def test_packed_documents_and_futures_are_apart(family: str, backend: str) -> None:
    """The gradient of a state with respect to embeddings is 0 outside of what it may see."""
    model = causal_model(family)
    (micro_batch,) = step(Layout(True)).micro_batches
    batch: Batch = micro_batch.batch
    DiffusionModel(model, PAD, backend)
    segments = Segments.of(batch, backend, causal=True)
    seen: list[Tensor] = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(output.retain_grad() or output)
    )
    encode = BACKBONES[family].encode_flat
    assert encode is not None
    states = encode(model, batch.ids[None], batch.position[None], segments)[0]
    for place in (0, 7, int(batch.cu_seqlens[3]), int(batch.cu_seqlens[4]) - 1):
        (slope,) = torch.autograd.grad(states[place].square().sum(), seen[0], retain_graph=True)
        moved = slope[0].abs().sum(1) > 0
        places = torch.arange(batch.ids.shape[0])
        sees = (batch.document == batch.document[place]) & (places <= place)
        assert torch.equal(moved, sees)


@every_family
def test_padding_on_either_side_is_invisible(family: str) -> None:
    model = causal_model(family)
    ids = torch.randint(5, 40, (1, 9), generator=torch.Generator().manual_seed(3))
    alone = model(input_ids=ids).logits[0]
    right = F.pad(ids, (0, 4), value=PAD)
    mask = (torch.arange(13) < 9).long()[None]
    assert (model(input_ids=right, attention_mask=mask).logits[0, :9] - alone).abs().max() < 1e-5
    left, mask = F.pad(ids, (4, 0), value=PAD), (torch.arange(13) >= 4).long()[None]
    positions = (torch.arange(13) - 4).clamp(min=0)[None]
    got = model(input_ids=left, attention_mask=mask, position_ids=positions).logits[0, 4:]
    assert (got - alone).abs().max() < 1e-5
    assert torch.isfinite(model(input_ids=left, attention_mask=mask).logits).all()


@every_family
def test_other_attention_functions_are_refused(family: str) -> None:
    model = causal_model(family)
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="expected eager or sdpa for a causal model"):
        model(input_ids=torch.tensor([[5, 6]]))


@every_family
def test_the_predictor_reads_the_state_before(family: str) -> None:
    model = causal_model(family)
    ids = torch.randint(5, 40, (2, 8), generator=torch.Generator().manual_seed(4))
    places = torch.tensor([[0, 3], [1, 7], [1, 1]])
    got = Predictor(model)(ids, torch.ones(2, 8, dtype=torch.bool), places)
    wanted = oracle(model)(input_ids=ids, use_cache=False).logits
    for row, (line, column) in zip(got, places.tolist(), strict=True):
        assert (row - wanted[line, column - 1]).abs().max() < 1e-5


@every_family
def test_sampling_is_greedy_next_token_decoding(family: str) -> None:
    model = causal_model(family)
    plain = oracle(model)
    prompts = [np.array(ids, np.int32) for ids in ([2, 9, 8], [2, 30], [2, 7, 7, 12, 31])]
    answers = generate(
        Predictor(model),
        [Request(ids=one) for one in prompts],
        Vocabulary(MASK, (SEP,), PAD),
        token_by_token(12),
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = prompt.tolist()
        while len(ids) < prompt.size + 12 and SEP not in ids[prompt.size :]:
            logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            logits[MASK] = -torch.inf
            ids.append(int(logits.argmax()))
        assert answer.ids.tolist() == ids[prompt.size :]
        assert answer.steps == len(ids) - prompt.size


def test_shift_and_flag_follow_the_method() -> None:
    config = tiny_config("llada")
    assert logit_shift(config) == 0
    set_attention(config, "causal")
    assert (config.causal, logit_shift(config)) == (True, 1)
    set_attention(config, None)
    assert config.causal, "a model of unknown method stays as it is"
    set_attention(config, "llada")
    assert (config.causal, logit_shift(config)) == (False, 0)
    bert = tiny_config("bert")
    set_attention(bert, "bert")
    assert not hasattr(bert, "causal")


@every_family
def test_attention_counts_half_of_the_pairs(family: str) -> None:
    full = count_flops(tiny_model(family))
    causal = count_flops(causal_model(family))
    assert causal.body == full.body
    pairs = (full.step([10], 0) - full.body * 10) / 100
    assert causal.step([10], 0) - causal.body * 10 == pytest.approx(pairs * 55)


@every_family
def test_a_saved_model_is_causal_again(family: str, tmp_path: Path) -> None:
    model = causal_model(family)
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    ids = torch.arange(5, 17)[None]
    assert again.config.causal
    assert torch.equal(logits_of(again, ids), logits_of(model, ids))
    plain = tiny_model(family)
    plain.save_pretrained(tmp_path / "plain")
    assert "causal" not in json.loads((tmp_path / "plain" / "config.json").read_text())


ELSEWHERE = """\
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
torch.save(model(input_ids=torch.arange(5, 17)[None]).logits, sys.argv[2])
assert not [name for name in sys.modules if name.split(".")[0] == "plugin"]
"""


@every_family
@pytest.mark.end_to_end
def test_plain_transformers_runs_the_published_code(family: str, tmp_path: Path) -> None:
    """Its own code: that of a published base would attend in both directions."""
    base = tmp_path / "base"
    write_model(base, tiny_model(family), word_tokenizer(["a"]), ModelFacts())
    for file in base.glob("modeling_*.py"):
        file.write_text(f"raise RuntimeError('the code of the base')\n{file.read_text()}")
    model = causal_model(family)
    model.config.auto_map = json.loads((base / "config.json").read_text())["auto_map"]
    write_model(tmp_path / "m", model, word_tokenizer(["a"]), ModelFacts(), base=str(base))
    program = f"import sys; sys.argv = ['', {str(tmp_path / 'm')!r}, {str(tmp_path / 'l.pt')!r}]\n"
    done = run_python(
        program + ELSEWHERE, cwd=tmp_path, env={"HF_MODULES_CACHE": str(tmp_path / "c")}
    )
    assert done.returncode == 0, done.stderr
    logits = torch.load(tmp_path / "l.pt")
    assert (logits - logits_of(model, torch.arange(5, 17)[None])).abs().max() < 1e-5
