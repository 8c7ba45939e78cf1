"""Small raw corpora, and `prepare` on them without its program."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from plugin.commands.prepare import named_tokenizer
from plugin.config.prepare_params import PrepareParams, parse_prepare
from plugin.corpus.prepare import Options, prepare
from plugin.corpus.steps import Share
from plugin.data.stored.manifest import MANIFEST

VOCABULARY = 512


def write_texts(path: Path, texts: Iterable[str]) -> Path:
    """Write a .jsonl of texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def sentences(count: int, seed: int = 0, words: int = 40) -> list[str]:
    """Return texts of random words, none like another."""
    draw = random.Random(seed)
    known = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 8))) for _ in range(900)]
    return [" ".join(draw.choices(known, k=words)) for _ in range(count)]


def changed(text: str, words: int, seed: int = 0) -> str:
    """Return the text with some words replaced by words that it does not have."""
    draw, parts = random.Random(seed), text.split()
    for place in draw.sample(range(len(parts)), words):
        parts[place] = f"zz{draw.randrange(10**6)}"
    return " ".join(parts)


def params_of(data: Path | str, **values: Any) -> PrepareParams:
    return parse_prepare({"dataset_name": str(data), "vocab_size": VOCABULARY, **values})


def run_prepare(
    data: Path | str,
    out: Path,
    *,
    share: tuple[int, int] = (0, 1),
    stop_after: str = "seal",
    verify: bool = False,
    task_bytes: int = 1 << 26,
    log: Callable[[str], None] = lambda line: None,
    **values: Any,
) -> dict[str, Any] | None:
    """Prepare `data` in this process."""
    options = Options(
        processes=1,
        share=Share(*share),
        stop_after=stop_after,
        verify=verify,
        task_bytes=task_bytes,
    )
    return prepare(params_of(data, **values), out, options, named_tokenizer, log)


def contents(out: Path) -> dict[str, bytes]:
    """Return what a corpus is: its tokens, tokenizer and dropped rows; no times and no report."""
    apart = (".work", MANIFEST, "digests.json", "report.json", "report.html")
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] not in apart
    }


def dropped_rows(out: Path) -> dict[str, tuple[str, str | None]]:
    """Return row -> (reason, twin) of dropped.jsonl."""
    lines = (out / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    rows = (json.loads(line) for line in lines)
    return {row["row"]: (row["reason"], row["twin"]) for row in rows}
