"""Results of runs side by side: one row a figure, one figure a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from ..base.errors import first_line
from ..run.evaluation import NORMAL_95
from .curves import EVAL_CI95, EVAL_LOSS, LOSS
from .parameters import Comparability
from .runs import Run


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A result of one run."""

    value: Any
    ci95: float | None = None  # half-width of its interval
    step: int | None = None  # at which it was measured
    stderr: float | None = None  # of a task's metric
    interval: list[float] | None = None  # low and high of its 95 %, as evaluate found it

    def as_json(self, *, plain: bool) -> Any:
        if plain:
            return self.value
        return {name: one for name, one in asdict(self).items() if one is not None}


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One result of all runs that have it. `show` writes a value."""

    name: str
    title: str
    show: Callable[[Any], str]
    figures: Mapping[str, Figure]  # label -> figure

    @property
    def plain(self) -> bool:
        """Return whether the figures are values alone."""
        return all(one.as_json(plain=False).keys() == {"value"} for one in self.figures.values())

    def text(self, label: str) -> str:
        if (figure := self.figures.get(label)) is None:
            return ""
        if figure.interval:
            low, high = map(self.show, figure.interval)
            return f"{self.show(figure.value)} ({low} to {high})"
        margin = figure.ci95
        if margin is None and figure.stderr is not None:
            margin = NORMAL_95 * figure.stderr
        spread = f" ± {self.show(margin).lstrip('+')}" if margin else ""
        return f"{self.show(figure.value)}{spread}"

    def as_json(self) -> dict[str, Any]:
        plain = self.plain
        return {label: one.as_json(plain=plain) for label, one in self.figures.items()}


def results(runs: Sequence[Run], compared: Comparability | None) -> list[ResultRow]:
    """Return the rows for which any run has a figure.

    The last evaluation losses are set against the first run's where they compare.
    """
    rows = [_row(runs, *how) for how in _FIGURES]
    if compared and compared.holds:
        last = next(place for place, row in enumerate(rows) if row.name == "eval_loss_last")
        rows.insert(last + 1, _against_first(runs))
    rows += _tasks(runs)
    return [row for row in rows if row.figures]


def _row(
    runs: Sequence[Run],
    name: str,
    title: str,
    show: Callable[[Any], str],
    measure: Callable[[Run], Figure | None],
) -> ResultRow:
    found = {run.label: figure for run in runs if (figure := measure(run)) is not None}
    return ResultRow(name=name, title=title, show=show, figures=found)


def _figure(value: Any) -> Figure | None:
    return None if value is None else Figure(value=value)


def _error(run: Run) -> Figure | None:
    error = run.file.result and run.file.result.error
    return Figure(value=first_line(error)) if error else None


def _steps(run: Run) -> Figure | None:
    if run.file.result:
        return _figure(run.file.result.steps)
    return _figure(run.progress.step if run.progress else run.history.last_step)


def _planned(run: Run) -> Figure | None:
    """Return the steps of a run that has not ended."""
    return Figure(value=run.progress.steps) if run.progress and run.progress.steps else None


def _tokens(run: Run) -> Figure | None:
    """Return the tokens seen: those logged at the last step, else speed times training time."""
    counted, speed = run.history.points("tokens"), _of_result(run, "throughput")
    ended = run.file.result and run.file.result.steps
    if speed and not (counted and counted[-1][0] == ended):
        return Figure(value=float(f"{speed.tokens_per_s * speed.training_seconds:.4g}"))
    return Figure(value=counted[-1][1]) if counted else None


def _loss(run: Run) -> Figure | None:
    if points := run.history.points(LOSS):
        return Figure(value=points[-1][1], step=points[-1][0])
    return _figure(_of_result(run, "loss"))


def evaluations(run: Run) -> list[Figure]:
    """Return every evaluation of a run with its interval and step, in order."""
    margins = dict(run.history.points(EVAL_CI95))
    return [
        Figure(value=value, ci95=margins.get(step), step=step)
        for step, value in run.history.points(EVAL_LOSS)
    ]


def _eval_first(run: Run) -> Figure | None:
    found = evaluations(run)
    return found[0] if found else _figure(_of_result(run, "eval_loss_first"))


def eval_last(run: Run) -> Figure | None:
    found = evaluations(run)
    return found[-1] if found else _figure(_of_result(run, "eval_loss"))


def _eval_best(run: Run) -> Figure | None:
    found = [one for one in evaluations(run) if math.isfinite(one.value)]
    return min(found, key=lambda one: one.value) if found else None


def _eval_published(run: Run) -> Figure | None:
    """Return the evaluation of the published weights: the last ones, where no others were chosen."""
    published = _of_result(run, "published")
    if published is None:
        return eval_last(run) if _of_result(run, "fuse") else None
    same = [one for one in evaluations(run) if one.value == published.eval_loss]
    return same[0] if same else _figure(published.eval_loss)


def _of_result(run: Run, name: str) -> Any:
    return getattr(run.file.result, name) if run.file.result else None


def _part(result: str, name: str) -> Callable[[Run], Figure | None]:
    """Return the reader of one value in a part of a run's result."""

    def read(run: Run) -> Figure | None:
        part = _of_result(run, result)
        return None if part is None else _figure(getattr(part, name))

    return read


def _against_first(runs: Sequence[Run]) -> ResultRow:
    """Return each run's last evaluation loss less that of the first run which has one.

    The interval takes the two losses for independent. They share documents and noise, so the true
    one is usually narrower.
    """
    last = {run.label: found for run in runs if (found := eval_last(run))}
    first = next(iter(last), "")
    differences = {
        label: Figure(
            value=found.value - last[first].value,
            ci95=math.hypot(last[first].ci95 or 0.0, found.ci95 or 0.0) or None,
        )
        for label, found in last.items()
        if label != first
    }
    title = f"  less that of {first}"
    return ResultRow(name="eval_loss_difference", title=title, show=_signed, figures=differences)


def _tasks(runs: Sequence[Run]) -> Iterator[ResultRow]:
    """Yield a row for each metric of each task that `evaluate` scored, then the last forwards."""
    found: dict[str, dict[str, Figure]] = {}
    for run in runs:
        for name, figure in _task_figures(run.evaluation):
            found.setdefault(name, {})[run.label] = figure
    for name in sorted(found):
        yield ResultRow(name=name, title=name, show=_loss_text, figures=found[name])
    forwards = {
        run.label: Figure(value=count)
        for run in runs
        if isinstance(count := run.evaluation.get("nfe"), int | float)
    }
    yield ResultRow(
        name="nfe", title="forwards (NFE), last evaluation", show=_count, figures=forwards
    )


def _task_figures(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    for task, metrics in evaluation.get("results", {}).items():
        for metric, found in metrics.items() if isinstance(metrics, dict) else ():
            if not isinstance(found, dict):
                continue
            of_metric = cast("dict[str, Any]", found)
            value, stderr = of_metric.get("value"), of_metric.get("stderr")
            if isinstance(value, int | float):
                error = float(stderr) if isinstance(stderr, int | float) else None
                shown = Figure(value=value, stderr=error, interval=_interval(of_metric))
                yield f"{task}: {metric}", shown


def _interval(figure: Mapping[str, Any]) -> list[float] | None:
    match figure.get("ci95"):
        case [int() | float() as low, int() | float() as high]:
            return [low, high]
        case _:
            return None


def _loss_text(value: Any) -> str:
    return f"{value:.4f}" if not value or abs(value) >= 1e-3 else f"{value:.1e}"


def _signed(value: Any) -> str:
    return f"{value:+.4f}"


def _count(value: Any) -> str:
    return f"{value:,.0f}"


def _rate(value: Any) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: Any) -> str:
    if not math.isfinite(value):  # of a file that somebody has written in
        return str(value)
    minutes, seconds = divmod(value, 60)
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02.0f} s" if minutes else f"{seconds:.1f} s"


def _gigabytes(value: Any) -> str:
    return f"{value / 1e9:.2f} GB"


def _small(value: Any) -> str:
    return f"{value:.1e}" if value else "0"


_FIGURES: tuple[tuple[str, str, Callable[[Any], str], Callable[[Run], Figure | None]], ...] = (
    ("status", "status", str, lambda run: Figure(value=run.status)),
    ("error", "error", str, _error),
    ("steps", "steps", _count, _steps),
    ("steps_planned", "  of", _count, _planned),
    ("tokens", "tokens", _count, _tokens),
    ("loss", "training loss", _loss_text, _loss),
    ("eval_loss_first", "evaluation loss, first", _loss_text, _eval_first),
    ("eval_loss_last", "evaluation loss, last", _loss_text, eval_last),
    ("eval_loss_best", "evaluation loss, best", _loss_text, _eval_best),
    ("eval_loss_published", "evaluation loss, published", _loss_text, _eval_published),
    ("seconds", "wall time", _seconds, lambda run: _figure(_of_result(run, "seconds"))),
    ("training_seconds", "  of training", _seconds, _part("throughput", "training_seconds")),
    ("tokens_per_s", "tokens/s", _rate, _part("throughput", "tokens_per_s")),
    ("peak_bytes", "peak memory", _gigabytes, _part("memory", "peak")),
    (
        "max_logit_difference",
        "fused logits differ by",
        _small,
        _part("fuse", "max_logit_difference"),
    ),
)
