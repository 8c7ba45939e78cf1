"""Evaluation of a trained model: `main.py evaluate MODEL --tasks T ...`."""

from __future__ import annotations

from ..base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import argparse
import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ..assembly.attention import choose_attention
from ..assembly.held_out import evaluated_as, held_out_loss, read_held_out
from ..base.errors import Code, JobError, Problem, first_line, guarded, json_line, one_line
from ..base.redact import guard_streams
from ..config.manifest import VERSION
from ..config.params import Params
from ..data.tokenizer_digest import tokenizer_digest
from ..evaluation.figures import figure
from ..evaluation.kept import Kept, content_key
from ..evaluation.report import lines, table, write_card_section
from ..evaluation.scorer import CheckedRows, How, Scored, read_items
from ..evaluation.scorers import SCORERS
from ..evaluation.subject import Subject
from ..inference.model import KnownModel, find_model, know_model, load_weights
from ..models.configuration import block_facts
from ..models.publish import public_name
from ..run.evaluation import (
    EVALUATION_FOLDER,
    REQUESTS_FILE,
    EvaluatedFigure,
    EvaluatedTask,
    Evaluation,
    gathered,
    write_evaluation,
)
from ..run.facts import DIFFUSION_FILE
from ..run.folder import RunFolder, to_json
from ..sampling.likelihood import LikelihoodSettings
from .evaluate_arguments import HARNESS, Task, evaluate_options

WINDOW = 1024  # tokens of a window of perplexity


def main(argv: Sequence[str]) -> int:
    guard_streams()
    quiet_loading()
    return guarded(lambda: _evaluate(evaluate_options(argv)))


def _evaluate(options: argparse.Namespace) -> int:
    began = time.perf_counter()
    path = Path(options.model)
    with suppress(JobError):  # reported with all other problems
        path = Path(find_model(options.model))
    out = options.out.expanduser() if options.out else results_folder(options.model, path)
    how = How(
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        shots=options.shots,
        template=options.chat_template != "off",
        slices=options.slices,
        max_length=options.max_length or WINDOW,
        out=out / EVALUATION_FOLDER,
        model=public_name(str(path)),
    )
    rows, harness, known = _read(options, how)
    if remark := known.remark(known.settings):
        print(remark, file=sys.stderr)
    subject, params = _load(options, known, how)
    try:
        with _progress() as beat:
            subject.beat = beat
            scored, seconds = _score(options, subject, params, how, rows, harness)
    except KeyboardInterrupt:
        print(_stopped(how), file=sys.stderr)
        return Code.INTERRUPTED
    total = time.perf_counter() - began
    content = gathered(out, _content(options, subject, scored, seconds, total))
    file = write_evaluation(out, content)
    carded = write_card_section(path, content)
    if options.json:
        print(json_line({**_parsed(content), "path": str(file)}))
        return 0
    console = Console(highlight=False)
    console.print(table(content))
    for line in lines(content):
        console.print(one_line(line), markup=False)
    card = f"; and in the card of {one_line(str(path))}" if carded else ""
    console.print(f"written to {one_line(str(file))}{card}", markup=False)
    return 0


def _stopped(how: How) -> str:
    kept = one_line(str(how.out))
    return f"stopped: finished requests are kept in {kept}; the same command resumes"


def results_folder(name: str, path: Path) -> Path:
    """Return where results go: the run's folder, else the model's, else one named after it.

    A folder that another tool made is not written to.
    """
    named = Path(name).expanduser()
    for folder in (path, path.parent, named):
        if (folder / "run.json").exists():
            return folder
    if (path / DIFFUSION_FILE).exists():
        return path
    return Path(f"evaluation-{public_name(str(path)).replace('/', '-')}")


def _read(options: argparse.Namespace, how: How) -> tuple[dict[str, CheckedRows], Any, KnownModel]:
    """Read every file and task, and all of the model but its weights.

    Returns the rows of each scorer, the harness' tasks, and the model. Raises JobError with every
    problem.
    """
    problems: list[Problem] = []
    rows: dict[str, CheckedRows] = {}
    harness: Any = None

    def attempt(job: Callable[[], None]) -> None:
        try:
            job()
        except JobError as error:
            problems.extend(error.problems)

    def read(task: Task) -> None:
        if task.scorer == "loss":
            read_items(task.file, None, lambda row: row.id)
        else:
            rows[task.scorer] = SCORERS[task.scorer](task.file, how)

    for task in options.parsed:
        if task.scorer:
            attempt(lambda task=task: read(task))

    def load_harness() -> None:
        nonlocal harness
        try:
            from ..evaluation.harness import load_tasks
        except ImportError as error:
            fix = f"Install it again: python -m pip install {HARNESS}"
            expected = "an lm-evaluation-harness that imports"
            raise JobError(Problem("tasks", expected, first_line(error), fix)) from error

        harness = load_tasks([task.word for task in options.parsed if task.of_harness], how)

    if any(task.of_harness for task in options.parsed):
        attempt(load_harness)
    known: list[KnownModel] = []
    attempt(lambda: known.append(know_model(options.model, options.overrides, options.base)))
    if known and block_facts(known[0].config):
        fix = "It sees nothing behind a block."
        problems += [
            Problem("tasks", "no infill with a block model", task.word, fix)
            for task in options.parsed
            if task.scorer == "infill"
        ]
    if problems:
        raise JobError(*problems)
    return rows, harness, known[0]


def _load(options: argparse.Namespace, known: KnownModel, how: How) -> tuple[Subject, Params]:
    loaded, path = load_weights(known), Path(known.path)
    model, settings = loaded.model, loaded.settings
    longest = min(how.max_length, known.positions)
    params = evaluated_as(known.facts, _run_of(path), model.config, max_length=longest)
    if options.max_length:
        params = params.model_copy(update={"max_length": longest})
    attention = choose_attention(params, model.config, model.device, model.dtype, float(longest))
    likelihood = LikelihoodSettings(
        estimator=options.likelihood,
        draws=options.draws,
        seed=settings.seed,
        cfg=settings.cfg,
        cfg_prompt=settings.cfg_prompt,
    )
    subject = Subject(
        model,
        known.chat,
        settings,
        likelihood,
        attention=attention.backend,
        batch_size=options.batch_size,
        digest=_digest(known),
        kept=Kept(how.out / REQUESTS_FILE),
    )
    return subject, params


def _run_of(path: Path) -> dict[str, Any] | None:
    """Return the parameters of the run that a model's folder belongs to; None without a run."""
    try:
        run = RunFolder(path.parent).read_run()
    except (OSError, ValueError, RecursionError):
        return None
    return {name: value for name, value in run.trained_with.items() if name != "run_dir"}


def _digest(known: KnownModel) -> str:
    """Return a digest of weights, tokenizer and this program, under which answers are kept."""
    tokenizer = known.chat.tokenizer
    return content_key(
        VERSION, known.digest(), tokenizer_digest(tokenizer), tokenizer.chat_template
    )


def _score(
    options: argparse.Namespace,
    subject: Subject,
    params: Params,
    how: How,
    rows: dict[str, CheckedRows],
    harness: Any,
) -> tuple[dict[str, Scored], dict[str, float]]:
    """Return the result of each task in the order asked for, and its seconds."""
    found: dict[str, Scored] = {}
    seconds: dict[str, float] = {}
    for task in options.parsed:
        began = time.perf_counter()
        if task.scorer == "loss":
            new = {"loss": _loss(subject, params, task.file, how)}
        elif task.scorer:
            new = {task.scorer: rows[task.scorer].score(subject)}
        elif harness:
            from ..evaluation.harness import run_tasks

            asked = replace(how, template=options.chat_template == "on")
            new, harness = run_tasks(harness, subject, asked, options.overrides), None
        else:  # of the harness, and scored together with the first
            continue
        found |= new
        seconds |= dict.fromkeys(new, round(time.perf_counter() - began, 3))
    return found, seconds


def _loss(subject: Subject, params: Params, file: str, how: How) -> Scored:
    """Return the held-out loss of a file, in total and by mask ratio."""
    held = read_held_out(params, file, subject.chat, how.limit)
    documents = held.documents
    settings = held.params.model_copy(update={"dataset_name": ""}).as_json()
    content = content_key(
        documents.ids.tolist(), documents.supervised.tolist(), documents.lengths.tolist()
    )
    measured = subject.measured(
        "loss",
        [settings, content],
        lambda: {
            "figures": held_out_loss(subject.module, subject.chat, held, lambda: None),
            "nfe": len(documents),
        },
    )
    return Scored(
        figures={
            name: figure(value, stderr, least=0.0, n=n)
            for name, (value, stderr, n) in measured["figures"].items()
        },
        rows=held.rows if how.limit is None else min(how.limit, held.rows),
        of=held.rows,
        protocol={
            "method": held.params.training_method,
            "stage": held.params.training_stage,
            "norm": held.params.loss_norm,
            "max_length": held.params.max_length,
            "noise": "frozen, stratified, as a run evaluates itself; the mask token is an output",
            "documents": len(documents),
            "n": "documents of loss, masked tokens of a bucket",
        },
    )


def _content(
    options: argparse.Namespace,
    subject: Subject,
    scored: dict[str, Scored],
    seconds: dict[str, float],
    total: float,
) -> Evaluation:
    likelihood = asdict(subject.likelihood)
    if likelihood["estimator"] != "monte_carlo":
        del likelihood["draws"]
    sampler, block = asdict(subject.sampler), block_facts(subject.model.config)
    if block:
        sampler["block_size"] = block.size  # of training, beside the block_length of sampling
    else:
        del likelihood["block_length"]
    likelihood["mask_token"] = "no output"
    return Evaluation(
        model=public_name(options.model),
        digest=subject.digest,
        results={
            name: {metric: EvaluatedFigure(**one) for metric, one in task.figures.items()}
            for name, task in scored.items()
        },
        tasks={
            name: EvaluatedTask(
                rows=task.rows,
                of=task.of,
                limit=options.limit,
                protocol=task.protocol,
                sampler=sampler,
                likelihood=likelihood,
                seconds=seconds[name],
            )
            for name, task in scored.items()
        },
        sampler=sampler,
        likelihood=likelihood,
        nfe=subject.nfe,
        seconds=round(total, 3),
        device=subject.model.device.type,
    )


def _parsed(content: Evaluation) -> dict[str, Any]:
    """Return the content as evaluation.json has it, without secrets."""
    return json.loads(to_json(content.content()))


@contextmanager
def _progress() -> Generator[Callable[[str, int], Callable[[int], None]]]:
    """Yield a starter of progress bars on stderr, which a file does not get."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bars:

        def start(what: str, total: int) -> Callable[[int], None]:
            bar = bars.add_task(what, total=total)
            return lambda done: bars.advance(bar, done)

        yield start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
