"""Rows of the fault table: inputs that ask for too much, each refused by one short line, soon."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from helpers.scenes import Scene
from helpers.support import ERROR, TINY_CONFIG, pairs

from plugin.data.tokenizer import train_tokenizer

from .stage import Stage, last_line

# (event, phase, promise, play), of the group `hostile`.
HostileRow = tuple[str, str, str, Callable[[Stage], str]]
WITHIN_S = 60.0  # of a run that loads first, on a busy machine
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(30) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"


def hostile_limits() -> list[HostileRow]:
    refused = "one line, exit {}, no run folder"
    return [
        (
            "a chat template without end",
            "load",
            refused.format(4),
            _template(LOOPS, "2 s of CPU time"),
        ),
        (
            "a chat template that doubles",
            "load",
            refused.format(4),
            _template(DOUBLING, "512 MB of memory"),
        ),
        ("a form's template without end", "load", refused.format(2), _form_template),
        ("YAML aliases of a billion words", "new run", refused.format(2), _aliases),
        ("1 KB of parquet, one cell of 640 MB", "load", refused.format(3), _parquet),
        ("200,000 layers", "load", refused.format(4), _layers),
        ("num_processes 100000", "new run", refused.format(2), _processes),
        ("a pipe as data", "new run", refused.format(3), _pipe),
    ]


def _refused(stage: Stage, name: str, code: int, says: str, *args: object) -> str:
    """Run the job with `args` in place of its options; return what was not as promised."""
    folder = stage.folder(f"hostile {name}")
    began_s = time.monotonic()
    done: Scene = stage.forks.run(folder, *_without(stage.job, args), *args)
    took_s = time.monotonic() - began_s
    lines = [line for line in done.err.splitlines() if ERROR.match(line)]
    if done.code != code or len(lines) != 1 or not re.search(says, lines[0]):
        return f"exit {done.code}: {last_line(done)}"
    if len(lines[0]) > 600:  # with the long name of a folder or two
        return f"a line of {len(lines[0])} characters"
    if folder.exists():
        return f"{folder} was left"
    return "" if took_s < WITHIN_S else f"told after {took_s:.0f} s"


def _without(job: tuple[object, ...], args: tuple[object, ...]) -> tuple[object, ...]:
    """Leave out the options that `args` name."""
    named = {word for word in args if isinstance(word, str) and word.startswith("--")}
    pairs_of = zip(job[::2], job[1::2], strict=True)
    return tuple(word for name, value in pairs_of if name not in named for word in (name, value))


def _scratch(stage: Stage, name: str) -> Path:
    folder = stage.root / "hostile limits"
    folder.mkdir(exist_ok=True)
    return folder / name


def _template(bomb: str, limit: str) -> Callable[[Stage], str]:
    def play(stage: Stage) -> str:
        made = train_tokenizer((text for row in pairs() for text in row.values()), 300)
        made.chat_template = bomb + "{% for m in messages %}{{ m.content }}[SEP]{% endfor %}"
        folder = _scratch(stage, f"tokenizer {limit}")
        made.save_pretrained(folder)
        return _refused(
            stage, limit, 4, f"tokenizer_name.*more than {limit}", "--tokenizer_name", folder
        )

    return play


def _form_template(stage: Stage) -> str:
    templates = (
        "--instruction_template",
        LOOPS + "{{ prompt }}",
        "--output_template",
        "{{ response }}",
    )
    return _refused(stage, "form template", 2, "instruction_template.*CPU time", *templates)


def _aliases(stage: Stage) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file = _scratch(stage, "c.yaml")
    file.write_text("\n".join([*lines, "seed: *a8"]), encoding="utf-8")
    return _refused(stage, "aliases", 2, "config: .*alias", "--config", file)


def _parquet(stage: Stage) -> str:
    file = _scratch(stage, "d.parquet")
    pq.write_table(
        pa.table({"prompt": ["q"], "response": [["a" * (16 << 20)] * 40]}), file, compression="zstd"
    )
    return _refused(stage, "parquet", 3, "row 1, column 'response'", "--dataset_name", file)


def _layers(stage: Stage) -> str:
    file = _scratch(stage, "config.json")
    file.write_text(json.dumps({**TINY_CONFIG, "num_hidden_layers": 200_000}), encoding="utf-8")
    return _refused(stage, "layers", 4, "num_hidden_layers of at most 512", "--model_config", file)


def _processes(stage: Stage) -> str:
    return _refused(stage, "processes", 2, "num_processes", "--num_processes", 100_000)


def _pipe(stage: Stage) -> str:
    file = _scratch(stage, "d.jsonl")
    os.mkfifo(file)
    return _refused(stage, "pipe", 3, "dataset_name", "--dataset_name", file)
