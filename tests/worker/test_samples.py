"""Samples during training: within the model's positions for any prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.published_checkpoints import write_checkpoint

from plugin.config.sampler import SamplerSettings, token_by_token
from plugin.data.chat import ChatFormat
from plugin.data.documents import Builder, Documents
from plugin.models.load import load_model
from plugin.models.tokenizer import load_tokenizer
from plugin.worker.samples import SampleWatch

POSITIONS, BLOCK = 32, 8
SAMPLER = SamplerSettings(max_new_tokens=64, block_length=BLOCK, steps=2, grow=True)


def documents(*prompts: int) -> Documents:
    builder = Builder()
    for prompt in prompts:
        ids = np.full(prompt + 1, 20, dtype=np.int32)
        builder.add(ids, np.arange(ids.size) >= prompt, prompt, "row")
    return builder.build()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ChatFormat]:
    """Return a BERT, whose 32 learned positions are a hard limit, and its chat format."""
    texts = ["What colour is the sky? It is blue."]
    folder = write_checkpoint(
        tmp_path_factory.mktemp("bert") / "classic",
        "classic",
        texts,
        max_position_embeddings=POSITIONS,
    )
    return load_model(str(folder)), ChatFormat(load_tokenizer(str(folder)))


@pytest.mark.parametrize(
    ("prompts", "watched"),
    [
        ((5, 31, 6, 30), [5, 6]),  # those with room for two blocks
        ((31, 25, 30), [25]),  # none has that room: the shortest, with a shorter answer
        ((31,), [31]),  # room for one token
        ((4, 5, 6, 7, 8, 9), [4, 5, 7, 9]),  # four of them, spread
    ],
)
def test_answers_end_within_the_positions_of_the_model(
    parts: tuple[Any, ChatFormat], prompts: tuple[int, ...], watched: list[int]
) -> None:
    watch = SampleWatch(*parts, documents(*prompts), SAMPLER)
    assert [one.prompt for one in watch._documents] == watched
    assert len(watch.samples()) == len(watched)  # torch raises when a token has no position


def test_a_causal_answer_is_watched_beyond_two_tokens(parts: tuple[Any, ChatFormat]) -> None:
    watch = SampleWatch(*parts, documents(5), token_by_token(64))
    assert watch._settings == replace(token_by_token(16), cache="none")


def test_samples_of_prompts_that_begin_alike_are_kept_apart(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from plugin.run.folder import RunFolder
    from plugin.run.heartbeat import Heartbeat
    from plugin.worker.reporter import Reporter

    reporter = Reporter(RunFolder(tmp_path), Heartbeat(tmp_path / "beat"), speaks=True)
    for number in (1, 2):
        reporter.sample(
            0, number, prompt="x" * 100 + str(number), expected="e", text="t", nfe=1, trace=[]
        )
    reporter.hparams({"seed": 1}, {"loss": 2.0, "eval_loss": None})
    reporter.close()
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert board.Tags()["tensors"] == ["samples/1/text_summary", "samples/2/text_summary"]
    assert board.Tags()["scalars"] == ["hparams/loss"], "an evaluation that never was has no loss"
