"""Step `tokenizer`: the tokenizer of a corpus, trained on a sample of it or named.

The folder of its only task holds the tokenizer as save_pretrained writes it. transformers, which
takes seconds and 250 MB, is imported where it is needed: the steps before do without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import Code, JobError, Problem
from ..config.prepare_params import PrepareParams
from .keep import EVAL, TRAIN, first_documents, train_bytes
from .listing import Listing
from .rows import numbered_documents
from .steps import CorpusStep

SAMPLE = 200 << 20  # bytes: more barely changes a vocabulary, and takes its memory many times over
READ = 4  # times the sample's bytes are read to draw it
HELD = 2 << 20  # bytes of held-out text on which tokenizers are compared
MULTIPLE = 64  # of a vocabulary
LONGEST = 20  # tokens that the report shows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Load = Callable[[str, str], "PreTrainedTokenizerBase"]  # (name, field) -> tokenizer


@dataclass(frozen=True)
class TextSample:
    """Texts for a tokenizer."""

    texts: list[str]
    held_out: list[str]
    bytes: int


def run_tokenizer(
    params: PrepareParams,
    listing: Listing,
    sign: CorpusStep,
    keep: CorpusStep,
    named: PreTrainedTokenizerBase | None,
    load: Load,
    number: int,
    folder: Path,
) -> dict[str, Any]:
    """Train the tokenizer, or take `named`. Returns its facts for the manifest and the report."""
    from ..data.bulk_tokenizer import CHECKED, BulkTokenizer
    from ..data.chat import ChatFormat
    from ..data.tokenizer import train_tokenizer
    from ..data.tokenizer_digest import tokenizer_digest

    fate = np.load(keep.folder(0) / "fate.npy", mmap_mode="r")
    if named is not None:
        tokenizer = named
        some = _documents(params, listing, sign, fate, range(len(listing.tasks)))
        checked = [text for _, text, kind in islice(some, CHECKED) if kind == TRAIN]
        facts: dict[str, Any] = {"name": params.tokenizer_name}
    else:
        sample = draw_sample(params, listing, sign, fate)
        if not sample.texts:
            raise JobError(
                Problem("dataset_name", "documents to train a tokenizer on", "none", "", Code.DATA)
            )
        form = [] if params.normalise == "none" else [params.normalise]
        tokenizer = train_tokenizer(
            sample.texts,
            _rounded(params.vocab_size),
            normalise=[*form, *(["lowercase"] if params.lowercase else [])],
            chat=True,
            multiple=MULTIPLE,
        )
        checked = sample.texts[:CHECKED]
        facts = {
            "trained_on": {
                "documents": len(sample.texts),
                "bytes": sample.bytes,
                "seed": params.seed,
            },
            "asked": params.vocab_size,
            "longest_tokens": _longest_tokens(tokenizer),
            "compared": _compared(params, tokenizer, sample.held_out, load),
        }
    notes: list[str] = []
    bulk = BulkTokenizer(ChatFormat(tokenizer), notes.append)
    bulk.encode(checked)
    tokenizer.save_pretrained(folder / "tokenizer")
    return {
        "digest": tokenizer_digest(tokenizer),
        "vocab_size": len(tokenizer),
        "engine": bulk.engine,
        "checked_rows": bulk.checked,
        "notes": notes,
        **facts,
    }


def _rounded(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE


def draw_sample(
    params: PrepareParams, listing: Listing, sign: CorpusStep, fate: NDArray[np.uint8]
) -> TextSample:
    """Draw about SAMPLE bytes of training documents, from each source by its weight.

    Only some tasks of a large source are read, chosen by the seed. Documents held out serve the
    comparison; without any, every hundredth one of the sample does.
    """
    sizes = train_bytes(sign, fate)
    random = np.random.Generator(np.random.Philox(key=params.seed))
    draws = random.random(len(sizes))
    shares = _shares(listing, sizes, draws)
    texts: list[str] = []
    held: list[str] = []
    size = held_size = 0
    for task in sorted(shares):
        for document, text, kind in _documents(params, listing, sign, fate, [task]):
            if kind == EVAL and held_size < HELD:
                held.append(text)
                held_size += len(text)
            elif kind == TRAIN and _drawn(document, params.seed) < shares[task]:
                texts.append(text)
                size += len(text.encode())
    if not held:
        held, texts = texts[99::100], [text for n, text in enumerate(texts) if n % 100 != 99]
    return TextSample(texts, held, size)


def _shares(listing: Listing, sizes: list[int], draws: NDArray[np.float64]) -> dict[int, float]:
    """Return the tasks to read, with the share of their documents to draw."""
    sources = [source.part.weight for source in listing.sources]
    tasks_of = [
        [n for n, task in enumerate(listing.tasks) if task.source == number and sizes[n]]
        for number in range(len(sources))
    ]
    weighed = [
        weight * sum(sizes[n] for n in tasks)
        for weight, tasks in zip(sources, tasks_of, strict=True)
    ]
    total = sum(weighed)
    found: dict[int, float] = {}
    for tasks, of_source in zip(tasks_of, weighed, strict=True):
        target = SAMPLE * of_source / total if total else 0
        chosen, read = [], 0
        for task in sorted(tasks, key=lambda n: draws[n]):
            if read >= READ * target:
                break
            chosen.append(task)
            read += sizes[task]
        found |= dict.fromkeys(chosen, min(1.0, target / max(1, read)))
    return found


def _drawn(document: int, seed: int) -> float:
    """Return a number in [0, 1) that depends on the seed and the document alone."""
    value = (document * 0x9E3779B97F4A7C15 + seed * 0xD6E8FEB86659FD93) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) / 2**64


def _documents(
    params: PrepareParams,
    listing: Listing,
    sign: CorpusStep,
    fate: NDArray[np.uint8],
    tasks: range | list[int],
) -> Iterator[tuple[int, str, int]]:
    """Yield (number, text, fate) of the documents of some tasks that stay."""
    firsts = first_documents(sign)
    for task in tasks:
        first = int(firsts[task])
        for document, text in numbered_documents(listing, listing.tasks[task], params, first):
            if fate[document] in (TRAIN, EVAL):
                yield document, text, int(fate[document])


def _longest_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the longest tokens: boilerplate that was repeated often shows there."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    words = [token for token in tokenizer.get_vocab() if token not in added]
    longest = sorted(words, key=lambda token: (-len(token), token))[:LONGEST]
    return [tokenizer.convert_tokens_to_string([token]) for token in longest]


def _compared(
    params: PrepareParams, tokenizer: PreTrainedTokenizerBase, texts: list[str], load: Load
) -> list[dict[str, Any]]:
    """Measure the trained tokenizer, and the one to compare with, on held-out texts."""
    from ..data.bulk_tokenizer import BulkTokenizer
    from ..data.chat import ChatFormat

    named = {"trained here": tokenizer}
    if params.compare_tokenizer:
        named[params.compare_tokenizer] = load(params.compare_tokenizer, "compare_tokenizer")
    size, words = (
        sum(len(text.encode()) for text in texts),
        sum(len(text.split()) for text in texts),
    )
    found: list[dict[str, Any]] = []
    for name, one in named.items():
        ids, _ = BulkTokenizer(ChatFormat(one), checks=0).encode(texts)
        tokens = ids.size
        found.append(
            {
                "name": name,
                "vocab_size": len(one),
                "tokens": tokens,
                "tokens_per_word": round(tokens / max(1, words), 4),
                "bytes_per_token": round(size / max(1, tokens), 4),
            }
        )
    return found
