"""A MODEL for sampling: what is refused by name, and answers that depend on their prompt alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.block_folder import write_block_folder
from helpers.published_checkpoints import write_checkpoint
from helpers.support import pairs
from transformers import AutoTokenizer

from plugin.base.errors import JobError
from plugin.commands.probe import _export
from plugin.config.families import FAMILIES
from plugin.config.sampler import block_by_block, token_by_token
from plugin.inference.ask import answer_of, answers, dialogue, request_of
from plugin.inference.model import LoadedModel, know_model, load_for_sampling
from plugin.models.checks.digest import base_digest
from plugin.models.configuration import block_facts, set_attention
from plugin.models.load import load_model
from plugin.models.lora import LoraSettings, add_adapter
from plugin.models.publish import write_model
from plugin.models.tokenizer import load_tokenizer
from plugin.run.facts import AdapterBase, BlockFacts, ModelFacts

TEXTS = [text for row in pairs() for text in row.values()]
BLOCK, SUN = BlockFacts(size=4), dialogue("Say sun.")
FAST = {"max_new_tokens": 8, "block_length": 4, "steps": 2}


def rewritten(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | fields), encoding="utf-8")


def of_another_tool(folder: Path) -> None:
    rewritten(folder, model_type="gpt2", architectures=["GPT2LMHeadModel"])


def without_mask(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)


def exported(folder: Path) -> None:
    made = folder.with_name("encoder")
    _export(str(folder), made, 16)
    shutil.rmtree(folder)
    made.rename(folder)


def of_another_vocabulary(folder: Path) -> None:
    words = [" ".join(f"{n}{n + 1} w{n}x" for n in range(at, at + 9)) for at in range(0, 400, 9)]
    other = write_checkpoint(folder.with_name("other"), "classic", words)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    for file in other.glob("tokenizer*"):
        shutil.copy(file, folder)


@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        (of_another_tool, r"^model: expected one of .*, got .*, a gpt2 model\."),
        (without_mask, r"^model: expected a tokenizer with a mask token, got .*, which has none\."),
        (exported, r"^model: expected a masked-LM head \(ModernBertForMaskedLM\), got .*: Modern"),
        (of_another_vocabulary, r"^model: expected the model's vocabulary \(at most 300 tokens\)"),
        (
            lambda folder: (folder / "config.json").unlink(),
            r"^model: expected a folder with config",
        ),
    ],
)
def test_what_is_no_diffusion_model_is_refused_by_name(
    tiny_bert: Path, tmp_path: Path, spoil: Callable[[Path], object], refusal: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    spoil(folder)
    with pytest.raises(JobError, match=refusal) as raised:
        know_model(str(folder))
    assert raised.value.code == 4


def test_base_of_a_full_model_is_refused(tiny_bert: Path) -> None:
    with pytest.raises(JobError, match=r"^base: expected no base with a full model"):
        know_model(str(tiny_bert), base=str(tiny_bert))


def test_adapter_without_facts_asks_for_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(JobError, match=r"^model: .* Name that model with --base\."):
        know_model(str(tmp_path))


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_checkpoint(tmp_path_factory.mktemp("causal") / "llada", "llada", TEXTS)
    rewritten(folder, causal=True)
    return str(folder)


def test_causal_model_refuses_settings_of_blocks(causal: str) -> None:
    with pytest.raises(JobError) as raised:
        know_model(causal, {"cache": "dual", "steps": 3, "temperature": 0.5})
    assert [problem.field for problem in raised.value.problems] == ["cache", "steps"]


def test_causal_model_draws_by_seed(causal: str) -> None:
    drawn = [
        answers(
            load_for_sampling(causal, {"max_new_tokens": 8, "temperature": 1.0, "seed": seed}),
            [dialogue("What colour is the sky?")],
        )[0]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].steps == drawn[0].nfe <= 8
    with pytest.raises(JobError, match=r"^infill: expected no infill with a causal model"):
        request_of(know_model(causal), [], "a [[2]] b")


# --- block models


def test_settings_of_a_block_folder_are_those_it_was_saved_with(tmp_path: Path) -> None:
    saved = replace(block_by_block(12, 4), threshold=0.9)
    known = know_model(str(write_block_folder(tmp_path / "m", block=BLOCK, sampler=saved)))
    assert known.settings == saved
    assert known.remark(known.settings) == ""
    typed = known.settings_with({"block_length": 16, "cache": "none"})
    assert typed == replace(saved, block_length=16, steps=16, cache="none")
    assert known.remark(typed).startswith(
        "block_length 16 is not the model's block_size 4: it was trained on blocks of 4 tokens"
    )


@pytest.mark.parametrize("family", ["sdar", "llama"])
def test_block_folder_of_another_tool_is_sampled_on_its_grid(tmp_path: Path, family: str) -> None:
    folder = write_block_folder(tmp_path / "m", family, block=BLOCK)
    known = know_model(str(folder), {"max_new_tokens": 6})
    assert known.settings == block_by_block(6, 4)
    loaded = load_for_sampling(str(folder), {"max_new_tokens": 6})
    (plain,) = answers(load_for_sampling(str(folder), FAST | {"steps": 4, "cache": "none"}), [SUN])
    (cached,) = answers(load_for_sampling(str(folder), FAST | {"steps": 4}), [SUN])
    assert plain == cached
    assert answers(loaded, [SUN])[0].nfe <= 6


def test_adapter_on_a_causal_base_is_a_block_model(tmp_path: Path) -> None:
    base = write_block_folder(tmp_path / "base", "llama")
    model = load_model(str(base), dtype=torch.float32)
    set_attention(model.config, "block", BLOCK)
    lora = LoraSettings(r=2, alpha=4, dropout=0.0, targets="auto")
    adapted = add_adapter(model, FAMILIES["llama"], lora, [])
    facts = ModelFacts(
        method="block",
        block=BLOCK,
        sampler=block_by_block(8, 4),
        base=AdapterBase(name=str(base), digest=base_digest(str(base))),
    )
    folder = tmp_path / "adapter"
    write_model(folder, adapted, load_tokenizer(str(base), family=FAMILIES["llama"]), facts)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}", encoding="utf-8")
    (run / "fused").symlink_to(base)
    with pytest.raises(JobError, match=r"^base: .* got \./nowhere/base, which is not there"):
        know_model(str(folder), base="./nowhere/base")
    loaded = load_for_sampling(str(folder), base=str(run))
    assert block_facts(loaded.config) == BLOCK
    assert loaded.settings == block_by_block(8, 4)
    (answer,) = answers(loaded, [SUN])
    assert 0 < answer.nfe <= 8
    assert know_model(str(base)).settings == token_by_token(128), "the base itself is causal"


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"cache": "dual"}, ["cache"]),
        ({"cfg": 0.5, "cfg_prompt": "dropped", "cache": "prefix"}, ["cfg", "cfg_prompt", "cache"]),
    ],
)
def test_settings_that_mean_nothing_to_blocks_are_refused(
    tmp_path: Path, given: dict[str, Any], fields: list[str]
) -> None:
    folder = write_block_folder(tmp_path / "m", block=BLOCK)
    with pytest.raises(JobError) as raised:
        know_model(str(folder), given)
    assert [problem.field for problem in raised.value.problems] == fields
    with pytest.raises(JobError, match=r"^infill: expected no infill with a block model"):
        request_of(know_model(str(folder)), [], "a [[2]] b")


def test_exact_cache_is_refused_with_full_attention(tiny_bert: Path) -> None:
    with pytest.raises(JobError, match=r"^cache: expected none or prompt or prefix or dual with"):
        know_model(str(tiny_bert), {"cache": "exact"})


def test_causal_model_has_the_exact_cache_or_none(causal: str) -> None:
    assert know_model(causal).settings.cache == "exact"
    assert know_model(causal, {"cache": "none"}).settings.cache == "none"


@pytest.fixture(scope="module")
def loaded(tiny_bert: Path) -> LoadedModel:
    return load_for_sampling(str(tiny_bert), FAST)


def test_a_long_prompt_shortens_no_other_answer(loaded: LoadedModel) -> None:
    """The longest of a batch used to decide how many tokens all of them could have."""
    room = loaded.positions
    long = max(
        ("3 " * count for count in range(room)),
        key=lambda text: size if (size := loaded.chat.prompt(dialogue(text)).size) < room else 0,
    )
    requests = [request_of(loaded, dialogue(text)) for text in (long, "Say sun.")]
    assert requests[0].longest is not None
    assert requests[0].longest < 8 < (requests[1].longest or 0)
    together = dict(loaded.stream(requests, 2))
    for number, request in enumerate(requests):
        (alone,) = dict(loaded.stream([request], 1)).values()
        assert together[number].ids.tolist() == alone.ids.tolist()
    assert together[0].ids.size <= requests[0].longest
    with pytest.raises(JobError, match=rf"^prompt: expected at most {room - 1} tokens"):
        request_of(loaded, dialogue(long * 2))


def test_holes_are_filled_and_the_rest_stays(loaded: LoadedModel) -> None:
    request = request_of(loaded, dialogue("Say sun."), "sun [[2]] sun[[1]]!")
    ((_, sample),) = loaded.stream([request], 1)
    assert request.holes is not None
    given = [place for place in range(request.ids.size) if place not in request.holes]
    answer = answer_of(loaded, request, sample)
    kept = [place - request.start for place in given if place >= request.start]
    assert sample.ids[kept].tolist() == [
        int(token) for place, token in enumerate(request.ids) if place in given[-len(kept) :]
    ]
    assert answer.tokens == 3
    assert answer.text.startswith("sun")
    assert answer.text.endswith("!")
    for wrong in ("no hole", "a [[0]] b"):
        with pytest.raises(JobError, match=r"^infill: "):
            request_of(loaded, [], wrong)
    with pytest.raises(JobError, match=r"^infill: expected at most 128 tokens"):
        request_of(loaded, [], "a [[200]] b")


def test_a_model_without_an_opening_needs_text_first(tmp_path: Path) -> None:
    """Dream predicts a token from the state before it, and a first token has none."""
    dream = know_model(str(write_checkpoint(tmp_path / "dream", "dream", TEXTS)))
    if dream.chat.start_id is None:
        with pytest.raises(JobError, match=r"^infill: expected a text before the first hole"):
            request_of(dream, [], "[[2]] sky")
    assert request_of(dream, [], "the [[2]] sky").holes is not None
