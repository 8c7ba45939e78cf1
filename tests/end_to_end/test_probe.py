"""`main.py probe` on a run folder: pretraining is worth something to a task of its user."""

from __future__ import annotations

import json
import random
from pathlib import Path

from faults.forks import Forks
from helpers.support import run_main, write_rows

TOPICS = ("food", "music", "sport")
WORDS = 12  # of a topic
TRAIN_STEPS = 300


def words_of() -> dict[str, list[str]]:
    """Return the words of each topic: random syllables, so that no spelling shows the topic."""
    draw = random.Random(0)
    known: set[str] = set()
    while len(known) < WORDS * len(TOPICS):
        known.add("".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in "xx"))
    order = draw.sample(sorted(known), len(known))
    return {topic: order[n * WORDS : (n + 1) * WORDS] for n, topic in enumerate(TOPICS)}


def texts(count: int, seed: int, first: int = 0, end: int = WORDS) -> list[dict[str, str]]:
    """Return texts of eight words of one topic, from its words `first` to `end`."""
    draw, words = random.Random(seed), words_of()
    chosen = [draw.choice(TOPICS) for _ in range(count)]
    return [
        {"text": " ".join(draw.choices(words[topic][first:end], k=8)), "label": topic}
        for topic in chosen
    ]


def test_pretrained_run_serves_better_than_a_random_encoder(
    forks: Forks, tiny_config: Path, tmp_path: Path
) -> None:
    """Held-out texts share no word with those that the head is fitted on: only pretraining, which
    saw the words of a topic together, can tell their topic.
    """
    corpus = write_rows(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in texts(600, 1)])
    job = ("--model_config", tiny_config, "--dataset_name", corpus, "--train_device", "cpu")
    job += ("--training_stage", "pretrain", "--objective", "mlm", "--train_steps", TRAIN_STEPS)
    job += ("--learning_rate", "3e-3", "--max_length", 64, "--batch_size", 8)
    done = forks.run(tmp_path / "run", *job, "--eval_strategy", "no")
    assert done.code == 0, done.err
    data = tmp_path / "labelled"
    data.mkdir()
    write_rows(data / "train.jsonl", texts(120, 2, 0, WORDS // 2))
    write_rows(data / "test.jsonl", texts(120, 3, WORDS // 2, WORDS))
    out = tmp_path / "encoder"
    words = ("--data", data, "--export", out, "--json")
    probed = run_main("probe", done.folder, *words, cwd=tmp_path)
    assert probed.returncode == 0, probed.stderr
    found = json.loads(probed.stdout)
    assert found["split"] == "own"
    assert found["ci95"][0] > found["random_encoder"]["ci95"][1], found
    assert (out / "model.safetensors").is_file()
    again = run_main("probe", done.folder, "--data", data, "--export", out, cwd=tmp_path)
    assert again.returncode == 2
    assert "export: expected a new or empty folder" in again.stderr
