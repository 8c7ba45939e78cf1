"""Answers to a file of prompts: `main.py sample MODEL --input F --out G`."""

from __future__ import annotations

from ..base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import argparse
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..base.digests import file_digest
from ..base.errors import Code, JobError, Problem, guarded, json_line, one_line
from ..base.redact import guard_streams
from ..config.manifest import VERSION
from ..inference.answers_file import AnswersFile, Figures
from ..inference.ask import answer_of, request_of
from ..inference.model import KnownModel, LoadedModel, know_model, load_weights
from ..inference.prompts import Prompt, check_file, check_prompts, read_prompts
from ..sampling.request import DenoisingStep, Request
from ..sampling.strategies import draws_anything
from ..sampling.trace import Taken, trace_lines
from .sample_arguments import sample_options


def main(argv: Sequence[str]) -> int:
    guard_streams()
    quiet_loading()
    return guarded(lambda: _sample(sample_options(argv)))


def _sample(options: argparse.Namespace) -> int:
    prompts = check_file(options.input)
    known = know_model(options.model, options.given, options.base)
    if options.n > 1 and not draws_anything(known.settings):
        fix = "Give --temperature, else all samples of a prompt are the same."
        raise JobError(Problem("n", "1 where nothing is drawn", str(options.n), fix))
    check_prompts(options.input, known)
    if remark := known.remark(known.settings):
        print(remark, file=sys.stderr)
    with AnswersFile(options.out, _job(options, known), options.trace) as file:
        report = file.open(overwrite=options.overwrite)
        if report is None:
            try:
                report = _run(options, known, file, prompts * options.n)
            except KeyboardInterrupt:
                print(_stopped(options, file), file=sys.stderr)
                return Code.INTERRUPTED
            report = file.finish(report)
    print(json_line(report) if options.json else _line(options.out, report))
    return 0


def _job(options: argparse.Namespace, known: KnownModel) -> dict[str, Any]:
    """Return all that decides about the answers: a file of another job is not resumed."""
    return {
        "model_digest": known.digest(),
        "input_digest": file_digest(options.input.resolve()),
        "settings": asdict(known.settings),
        "n": options.n,
        "traced": options.trace is not None,
    }


def _run(
    options: argparse.Namespace, known: KnownModel, file: AnswersFile, total: int
) -> dict[str, Any]:
    """Write the answers that are missing; return the report."""
    resumed = file.figures.answers
    loaded = load_weights(known)
    try:
        with _progress(total, file.figures) as advance:
            _answer(options, loaded, file, advance)
    except torch.OutOfMemoryError as error:
        fix = "The answers so far are kept: run it again with a smaller one."
        got = str(options.batch_size)
        raise JobError(
            Problem("batch_size", "a batch that fits the GPU", got, fix, Code.OUT_OF_MEMORY)
        ) from error
    return _report(options, loaded, file.figures, resumed)


def _answer(
    options: argparse.Namespace,
    loaded: LoadedModel,
    file: AnswersFile,
    advance: Callable[[], None],
) -> None:
    """Answer what is missing, in order; an answer that is early waits for those before it."""
    first, written = file.figures.answers, 0
    asked: dict[int, tuple[Prompt, Request]] = {}
    taken: dict[int, list[Taken]] = {}
    waiting: dict[int, dict[str, Any]] = {}

    def requests() -> Iterator[Request]:
        for number, (prompt, sample) in enumerate(_samples(options.input, options.n, first)):
            request = request_of(loaded, prompt.turns, prompt.infill, (prompt.line, sample))
            asked[number], taken[number] = (prompt, request), []
            yield request

    def keep(number: int, step: DenoisingStep, ids: NDArray[np.int32]) -> None:
        taken[number].append((step, ids))

    began = time.perf_counter()
    on_step = keep if options.trace else None
    for number, sample in loaded.stream(requests(), options.batch_size, on_step=on_step):
        prompt, request = asked.pop(number)
        answer = answer_of(loaded, request, sample)
        waiting[number] = {"prompt": prompt.text, **asdict(answer)}
        while written in waiting:
            lines = trace_lines(taken.pop(written), loaded.chat)
            file.write(waiting.pop(written), lines, time.perf_counter() - began)
            written += 1
        advance()


def _samples(path: Path, n: int, first: int) -> Iterator[tuple[Prompt, int]]:
    """Yield each prompt n times with the number of the sample, from answer `first` on."""
    each = ((prompt, sample) for prompt in read_prompts(path) for sample in range(n))
    return islice(each, first, None)


@contextmanager
def _progress(total: int, figures: Figures) -> Generator[Callable[[], None]]:
    """Draw a bar with the time that is left, on a terminal; the value draws it anew."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    began, before = time.perf_counter(), figures.tokens
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=figures.answers, speed="")

        def advance() -> None:
            rate = (figures.tokens - before) / (time.perf_counter() - began)
            bar.update(task, completed=figures.answers, speed=f"{rate:,.0f} tokens/s")

        yield advance


def _report(
    options: argparse.Namespace, loaded: LoadedModel, figures: Figures, resumed: int
) -> dict[str, Any]:
    return {
        "model": options.model,
        "input": str(options.input),
        "answers": figures.answers,
        "batch_size": options.batch_size,
        "tokens": figures.tokens,
        "steps": figures.steps,
        "nfe": figures.nfe,
        "tokens_per_forward": round(figures.tokens / max(1, figures.nfe), 4),
        "seconds": round(figures.seconds, 3),
        "tokens_per_s": round(figures.tokens / max(figures.seconds, 1e-9), 2),
        "resumed_at": resumed,
        "device": str(loaded.predict.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {
            "trainer": VERSION,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _line(out: Path, report: dict[str, Any]) -> str:
    return (
        f"{one_line(str(out))}: {report['answers']} answers, {report['nfe']:,} forwards, "
        f"{report['tokens_per_forward']:.2f} tokens a forward, {report['tokens_per_s']:,.0f} tokens/s"
    )


def _stopped(options: argparse.Namespace, file: AnswersFile) -> str:
    return (
        f"stopped: {file.figures.answers} answers are kept in {one_line(str(options.out))}.part; "
        "the same command resumes"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
