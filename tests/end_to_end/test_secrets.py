"""Keys in the environment, rows and file names: absent from all that a run or command leaves."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from helpers.support import pairs, run_main, write_rows

from plugin.base.redact import MARK, compile_pattern
from plugin.config.parse import parse
from plugin.data.tokenizer import train_tokenizer

ENVIRONMENT = {
    "HF_TOKEN": "hf_" + "Zy9" * 12,
    "WANDB_API_KEY": "fedcba98" * 5,
    "MY_SECRET": 'Tr0ub4dor&3 "quoted"',
    "DB_PASS": "correct-horse-7",
    "GITLAB_PAT": "glpat-Xk29fJqq81",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
}
IN_ROWS = ("sk-proj-4fT9" + "aB3" * 8, "AKIA" + "Q7ZP" * 4)
IN_A_NAME = "ghp_" + "m4N" * 12
NINE = (*ENVIRONMENT.values(), *IN_ROWS, IN_A_NAME)


def spellings(key: str) -> Iterator[bytes]:
    yield key.encode()
    yield json.dumps(key)[1:-1].encode()
    yield quote(key, safe="").encode()
    yield base64.b64encode(key.encode()).rstrip(b"=")[:-1]


def leaks(folder: Path, *streams: str) -> list[str]:
    """Return each place of a key, in the name or in the content of a file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    texts = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    texts |= dict.fromkeys(map(str, texts), b"") | {
        f"stream {n}": text.encode() for n, text in enumerate(streams)
    }
    spelled = [(key, word) for key in NINE for word in spellings(key)]
    return [
        f"{key} in {name}"
        for name, text in texts.items()
        for key, word in spelled
        if word in text or word in name.encode()
    ]


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of rows that hold keys, in two files, one of them named by a key."""
    folder = tmp_path_factory.mktemp("dump")
    for number, name in enumerate((IN_A_NAME, "eval")):
        keys = [*ENVIRONMENT.values(), *IN_ROWS]
        rows = [
            {
                "prompt": f"{keys[n % 8]} {row['prompt']}",
                "response": f"{row['response']} {keys[n % 8]}",
            }
            for n, row in enumerate(pairs())
        ]
        write_rows(folder / f"{name}.jsonl", rows[12 * number : 12 * number + 12])
    return folder


def test_nine_keys_are_in_no_artefact_of_a_run(dump: Path, tiny_bert: Path, tmp_path: Path) -> None:
    """Audit 18: a key stood in rows.txt, from a file's name.

    Two ranks, W&B offline, adapter, fused model, card, TensorBoard.
    """
    run = tmp_path / "run"
    data = (
        "--model_name",
        tiny_bert,
        "--dataset_name",
        dump,
        "--max_length",
        128,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        2,
    )
    work = (
        "--train_steps",
        4,
        "--batch_size",
        4,
        "--num_processes",
        2,
        "--train_device",
        "cpu",
        "--run_dir",
        run,
    )
    more = ("--lora", "true", "--fuse_model", "true", "--log_to_wandb", "true", "--save_steps", 4)
    done = run_main(
        "train",
        *data,
        *work,
        *more,
        env={**ENVIRONMENT, "WANDB_MODE": "offline"},
        timeout_s=240,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    made = (
        "adapter/README.md",
        "fused/README.md",
        "data/train/rows.txt",
        "samples.jsonl",
        "run.json",
        "checkpoint-4",
    )
    assert all((run / name).exists() for name in made)
    assert list(run.glob("tb/events*"))
    assert list(run.rglob("*.wandb"))
    for name in ("samples.jsonl", "data/train/rows.txt"):
        assert MARK in (run / name).read_text(encoding="utf-8"), f"{name} did hold a key"
    assert leaks(tmp_path, done.stdout, done.stderr) == []


@pytest.mark.parametrize(
    "words",
    [
        ("chat", f"./{ENVIRONMENT['HF_TOKEN']}", "--prompt", "hi"),
        ("chat", "no-model", "--base", f"./{ENVIRONMENT['HF_TOKEN']}", "--prompt", "hi"),
        ("fuse", "--adapter", f"./{ENVIRONMENT['HF_TOKEN']}", "--model_name", "m", "--out", "o"),
        ("train", "--model_name", f"./{ENVIRONMENT['HF_TOKEN']}", "--dataset_name", "d"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_given_a_key_does_not_print_it(words: tuple[str, ...], tmp_path: Path) -> None:
    """Audit 19: chat and fuse printed it in clear."""
    done = run_main(*words, env=ENVIRONMENT, cwd=tmp_path)
    assert done.returncode in (2, 4), done.stderr
    assert leaks(tmp_path, done.stdout, done.stderr) == []


def test_a_tokenizer_learns_no_key_as_a_word() -> None:
    word = "qwertyuiopasdfghjklzxcvbnmqwertyu"
    for text, known in ((word, True), (f"hf_{word}", False)):
        tokenizer = train_tokenizer((f"the key is {text}" for _ in range(200)), 600)
        assert any(word in token for token in tokenizer.get_vocab()) is known, (
            "or the second line says nothing"
        )


def test_a_hosts_other_fields_are_named_without_their_values() -> None:
    given = {"dataset_name": "d", "model_name": "m", "api_token": IN_ROWS[0], IN_A_NAME: "x"}
    notes = parse(given, unknown="note").notes
    assert not any(IN_ROWS[0] in note for note in notes)


@pytest.mark.parametrize(
    "name", ["DB_PASS", "PGPASSWORD", "GITLAB_PAT", "MYSQL_PASSWD", "BASIC_AUTH", "API_KEY"]
)
def test_names_of_keys_are_known(name: str) -> None:
    assert compile_pattern({name: "s3cret-word-1"}).sub(MARK, "a s3cret-word-1 b") == f"a {MARK} b"


@pytest.mark.parametrize("name", ["PATH", "COMPASS", "GIT_AUTHOR_NAME", "PATTERN"])
def test_names_like_those_of_keys_are_none(name: str) -> None:
    assert (
        compile_pattern({name: "s3cret-word-1"}).sub(MARK, "a s3cret-word-1 b")
        == "a s3cret-word-1 b"
    )
