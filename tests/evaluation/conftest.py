"""A small subject for the scorers: a real tokenizer, and a random model or scripted answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.tiny import tiny_model, word_tokenizer

from plugin.config.sampler import SamplerSettings
from plugin.data.chat import ChatFormat
from plugin.evaluation.kept import Kept
from plugin.evaluation.subject import Asked, Reply, Subject
from plugin.sampling.likelihood import LikelihoodSettings

WORDS = tuple(
    "say the sky is blue red what 1 2 3 4 5 # plus answer question ada bob : . - one".split()  # noqa: SIM905
)
SAMPLER = SamplerSettings(max_new_tokens=8, block_length=4, steps=4)
Make = Callable[..., Subject]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(word_tokenizer(WORDS))


@pytest.fixture
def make_subject(chat: ChatFormat, tmp_path: Path) -> Make:
    """Return call(family, ...) -> a subject of a random model that keeps its answers on disk."""

    def make(family: str = "bert", **changes: Any) -> Subject:
        how: dict[str, Any] = {
            "attention": "loop",
            "batch_size": 4,
            "digest": family,
            "kept": Kept(tmp_path / "requests.jsonl"),
            "sampler": SAMPLER,
            "likelihood": LikelihoodSettings(draws=8),
        } | changes
        sampler, likelihood = how.pop("sampler"), how.pop("likelihood")
        return Subject(tiny_model(family), chat, sampler, likelihood, **how)

    return make


@pytest.fixture
def scripted(chat: ChatFormat) -> Callable[[Callable[[str], str]], Any]:
    """Return call(answer) -> a subject whose answer to a prompt's text is `answer(text)`."""

    def make(answer: Callable[[str], str]) -> Any:
        seen: list[str] = []

        def answers(asked: Sequence[Asked]) -> list[Reply]:
            texts: list[str] = []
            for one in asked:
                ids = one.ids.copy()
                if one.holes is not None:
                    ids[one.holes] = chat.mask_id
                texts.append(chat.frame(ids.tolist()))
            seen.extend(texts)
            written = [chat.plain_ids([answer(text)])[0] for text in texts]
            return [Reply(ids=each, nfe=1) for each in written]

        return SimpleNamespace(chat=chat, sampler=SAMPLER, answers=answers, seen=seen, infills=True)

    return make
