"""Raw text to stored tokens: list, sign, bands, keep, tokenizer, tokens, seal.

The key of a step is the digest of its parameters, of what it reads and of its version, so that a
rerun does what is missing and a changed parameter repeats the steps that it shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..base.errors import JobError, Problem, data_error
from ..base.files import remove
from ..config.prepare_params import STEPS, PrepareParams
from ..data.mixture import parse_mixture
from ..data.stored.manifest import WORK
from .facts import Work
from .keep import run_bands, run_keep
from .listing import TASK_BYTES, list_sources
from .seal import seal, sealed_with, why_changed
from .sign import dropped_reasons, run_sign, scheme_of
from .steps import CorpusStep, Log, Share, Workers, disk_error, held, key_of, run_step
from .tokenizer import Load, run_tokenizer
from .tokens import run_tokens

# The version of each step's code: a change that shapes its output raises it.
VERSIONS = {"sign": 1, "bands": 1, "keep": 1, "tokenizer": 1, "tokens": 1, "seal": 1}
LONG_WORD = 20  # characters: the mean word of a language without spaces has more


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a run of `prepare` that do not shape its result."""

    processes: int
    share: Share
    stop_after: str = "seal"
    verify: bool = False
    task_bytes: int = TASK_BYTES
    version: str = ""
    command: Sequence[str] = ()


def prepare(
    params: PrepareParams, out: Path, options: Options, load: Load, log: Log
) -> dict[str, Any] | None:
    """Prepare a corpus in `out`. Returns its manifest, or None if it is not finished.

    It is not finished if a step was to be the last one, or if tasks of other shares are missing.
    `load` returns a tokenizer by its name. Raises JobError.
    """
    _check_out(out, params)
    work = out / WORK
    workers = Workers(options.processes)
    with held(work, options.share), closing(workers):
        try:
            return _prepare(params, out, work, options, workers, load, log)
        except OSError as error:
            raise disk_error(out, error) from error


def _check_out(out: Path, params: PrepareParams) -> None:
    """Raise JobError (exit 2) for a folder that holds something else, or lies in the data."""
    for part in parse_mixture(params.dataset_name, weights=True):
        if part.path and part.path.is_dir() and out.resolve().is_relative_to(part.path.resolve()):
            fix = "A rerun would read it: sub-folders of the data are read too."
            expected, got = "a folder outside of the data", f"{out}, in {part.path}"
            raise JobError(Problem("out", expected, got, fix))
    foreign = [path.name for path in (out.iterdir() if out.is_dir() else ()) if path.name != WORK]
    if out.exists() and not out.is_dir():
        raise JobError(Problem("out", "a new folder, or one of prepare", f"{out}, a file"))
    if foreign and not (out / WORK).is_dir() and not sealed_with(out):
        got = f"{out}, which holds {', '.join(sorted(foreign)[:3])}"
        raise JobError(
            Problem("out", "a new folder, or one of prepare", got, "Choose another folder.")
        )


def _prepare(
    params: PrepareParams,
    out: Path,
    work: Path,
    options: Options,
    workers: Workers,
    load: Load,
    log: Log,
) -> dict[str, Any] | None:
    if options.share.of == 1:
        for part in work.glob("*/.*.part"):  # of a run that was killed
            remove(part)
    plan = plan_steps(params, work, options, load)
    log(_listed(plan))
    key = key_of("seal", VERSIONS["seal"], [step.key for step in plan.steps], params.model_dump())
    if sealed := _finished(out, key, options, log):
        return sealed
    for step in plan.steps:
        if STEPS.index(step.name) > STEPS.index(options.stop_after):
            return None
        if missing := run_step(step, options.share, workers, log):
            log(f"{step.name}: {len(missing)} tasks of other shares are missing; then run it again")
            return None
        for note in _notes(step, plan):
            log(note)
    if options.stop_after != "seal" or not options.share.takes(0):
        return None
    return seal(out, key, plan)


def plan_steps(params: PrepareParams, work: Path, options: Options, load: Load) -> Work:
    """List the data and lay out the steps. Raises JobError."""
    listing = list_sources(
        params.dataset_name, work, verify=options.verify, task_bytes=options.task_bytes
    )
    dedup, reads = params.dedup, tuple(map(listing.size, listing.tasks))
    texts = [params.text_field, params.text_rows, params.bad_rows]
    form = [params.normalise, params.lowercase]

    def step(
        name: str, sizes: tuple[int, ...], run: Callable[[int, Path], dict[str, Any]], *shape: Any
    ) -> CorpusStep:
        return CorpusStep(name, key_of(name, VERSIONS[name], *shape), sizes, run, work)

    # Without near duplicates, the signatures are not computed.
    scheme = vars(scheme_of(params)) if dedup.near else None
    sign = step(
        "sign", reads, partial(run_sign, params, listing), listing.facts(), texts, form, scheme
    )
    bands = step(
        "bands",
        (sum(reads) // dedup.bands,) * (dedup.bands if dedup.near else 0),
        partial(run_bands, params, sign),
        sign.key,
        dedup.verify,
    )
    keep = step(
        "keep",
        (1,),
        partial(run_keep, params, listing, sign, bands),
        bands.key,
        [dedup.exact, dedup.near, dedup.keep, params.eval_share, params.seed],
    )
    of_tokenizer: list[Any] = [params.vocab_size, [s.part.weight for s in listing.sources]]
    named = None
    if params.tokenizer_name:
        from ..data.tokenizer_digest import tokenizer_digest

        named = load(params.tokenizer_name, "tokenizer_name")
        of_tokenizer = [tokenizer_digest(named)]
    tokenizer = step(
        "tokenizer",
        (1,),
        partial(run_tokenizer, params, listing, sign, keep, named, load),
        keep.key,
        of_tokenizer,
        params.compare_tokenizer,
    )
    tokens = step(
        "tokens",
        reads,
        partial(run_tokens, params, listing, sign, keep, tokenizer, load),
        tokenizer.key,
    )
    return Work(
        params=params,
        listing=listing,
        sign=sign,
        bands=bands,
        keep=keep,
        tokenizer=tokenizer,
        tokens=tokens,
        version=options.version,
        command=options.command,
    )


def _finished(out: Path, key: str, options: Options, log: Log) -> dict[str, Any] | None:
    """Return the manifest of the folder if it is finished already. Raises JobError if it changed."""
    manifest = sealed_with(out)
    if manifest.get("key") != key:
        return None
    if reason := why_changed(out) if options.verify else "":
        fix = "Remove the folder and prepare it again: its files and the work share their content."
        raise data_error("out", "a folder as prepare left it", f"{out}: {reason}", fix)
    log(f"seal: {out} is finished already")
    return manifest


def _listed(plan: Work) -> str:
    listing = plan.listing
    files = sum(len(source.files) for source in listing.sources)
    size = sum(file.bytes for source in listing.sources for file in source.files)
    hub = sum(source.part.path is None for source in listing.sources)
    names = f"{files} files of {size:,} bytes" + (f" and {hub} hub datasets" if hub else "")
    return f"list: {names} in {len(listing.tasks)} tasks"


def _notes(step: CorpusStep, plan: Work) -> list[str]:
    """Return what a person should know of a step that is done."""
    facts = [step.facts(task) for task in range(len(step.sizes))]
    if step.name == "sign":
        words, characters = (sum(one[name] for one in facts) for name in ("words", "characters"))
        dropped = dropped_reasons(facts).items()
        notes = [f"sign: {count} rows dropped: {reason}" for reason, count in dropped]
        near = plan.params.dedup
        if words and characters > LONG_WORD * words and near.near and near.unit == "word":
            notes.append(
                f"dedup.unit: the mean word has {characters / words:.0f} characters; "
                "character suits a language without spaces"
            )
        return notes
    if step.name == "keep":
        kept = ", ".join(f"{count} {name}" for name, count in facts[0].items() if name in _SHOWN)
        return [f"keep: {kept}"]
    if step.name == "tokenizer":
        of = facts[0]
        notes = [*of["notes"]]
        if of.get("asked", 0) > of["vocab_size"]:
            notes.append(
                f"vocab_size: the sample gives {of['vocab_size']} tokens of {of['asked']} asked for"
            )
        return notes
    return []


_SHOWN = ("train", "eval", "exact duplicate", "near duplicate")
