"""Nine cells: each method in full, LoRA and QLoRA learns eight answers word for word.

The bases know the language of the answers from other pairs, as a published model does: an adapter
cannot move the frozen embeddings and head of a model that knows nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.overfit_cells import Pairs, run
from helpers.published_checkpoints import write_checkpoint

from plugin.models.publish import write_model
from plugin.run.facts import ModelFacts

WORDS = ("sky", "sun", "snow", "coal", "rose", "sea", "leaf", "gold", "milk", "ink", "sand", "fire")
METHODS = ("bert", "dream", "llada")
BASE_STEPS = {"bert": 1000, "dream": 700, "llada": 700}
CELLS: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 3e-3},
    "lora": {"learning_rate": 3e-3, "lora": True},
    "qlora": {"learning_rate": 3e-3, "lora": True, "load_in_4bit": True},
}
STEPS = {"full": {"bert": 350}, "lora": {"bert": 800}, "qlora": {"bert": 800}}
USUAL_STEPS = {"full": 500, "lora": 700, "qlora": 700}
# each takes under 20 on a quiet machine; next to other work on its cores, up to 22 were seen
CPU_SECONDS = 40.0


def made_up(count: int) -> Pairs:
    """Return questions about two words, answered by one to four words that follow no rule."""
    rng = random.Random(0)
    asked = [(one, two) for one in WORDS for two in WORDS if one != two]
    rng.shuffle(asked)
    return [
        (
            f"What is {one} and {two}?",
            f"It is {' '.join(rng.choice(WORDS) for _ in range(rng.randint(1, 4)))}.",
        )
        for one, two in asked[:count]
    ]


_ALL = made_up(56)
OTHERS, PAIRS = _ALL[:48], _ALL[48:]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a method's base on its first call.

    A base takes a few seconds of full training on the other pairs.
    """
    made: dict[str, Path] = {}

    def base(method: str) -> Path:
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            raw = write_checkpoint(
                folder / "raw", method, [text for pair in (*OTHERS, *PAIRS) for text in pair]
            )
            learned = run(
                folder, method, raw, OTHERS, train_steps=BASE_STEPS[method], learning_rate=3e-3
            )
            made[method] = folder / "base"
            write_model(made[method], learned.model, learned.prepared.tokenizer, ModelFacts())
        return made[method]

    return base


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("method", METHODS)
def test_eight_pairs_are_answered_word_for_word(
    method: str, cell: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each answer stops where the training answer does."""
    base, steps = bases(method), STEPS[cell].get(method, USUAL_STEPS[cell])
    began = time.process_time()
    learned = run(tmp_path, method, base, PAIRS, train_steps=steps, **CELLS[cell])
    chat, documents = learned.prepared.chat, learned.prepared.train
    answers = learned.answers()
    assert [chat.decode(ids.tolist()) for ids in answers] == [reply for _, reply in PAIRS]
    lengths = [documents[index].ids.size - documents[index].prompt for index in range(8)]
    assert len(set(lengths)) > 2, "a stop that is always in one place is no achievement"
    for ids, length in zip(answers, lengths, strict=True):
        assert ids[length - 1] == chat.end_id
        assert chat.end_id not in ids[: length - 1]
    assert time.process_time() - began < CPU_SECONDS
