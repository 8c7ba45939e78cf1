"""Log lines about a run: its figures, its samples and its end."""

from __future__ import annotations

import json
from collections.abc import Mapping

from .events import ProgressFile, SampleEvent
from .folder import RunFolder
from .outcome import Outcome, Result

LONGEST = 200  # characters shown of a prompt or an answer


def outcome_line(outcome: Outcome, folder: RunFolder) -> str:
    """Return the last line of a run's log."""
    if outcome.error:
        return outcome.error.line
    if outcome.outcome == "stopped":
        return f"stopped {_stopped(outcome.result, folder)}"
    result = outcome.result or Result(outcome=outcome.outcome)
    steps = counted(result.steps or 0, "step")
    if result.throughput:
        steps += f" in {result.throughput.training_seconds} s"
    loss = "" if result.eval_loss is None else f", eval loss {result.eval_loss:.4f}"
    seconds = f"{result.seconds or 0} s with loading, evaluation and saving"
    return f"{outcome.outcome}: {steps}{loss}; {seconds}"


def _stopped(result: Result | None, folder: RunFolder) -> str:
    saved = folder.checkpoints()
    if result is None:
        return (
            f"immediately, without saving; the last checkpoint is {saved[-1].name}"
            if saved
            else "immediately; nothing was saved"
        )
    if not result.steps:
        return "before the first step; there is nothing to save"
    loss = _last_loss(folder) if result.loss is None else result.loss
    shown = "" if loss is None else f", loss {loss:.4f}"
    kept = f"; saved as {saved[-1].name}" if saved else ""
    return f"after step {result.steps}{shown}{kept}"


def _last_loss(folder: RunFolder) -> float | None:
    """Return the newest reported loss, for a run that stopped before it logged any."""
    try:
        content = (folder / "progress.json").read_text(encoding="utf-8")
        return ProgressFile.read(json.loads(content)).loss
    except (OSError, ValueError):
        return None


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 row`, `2,000 rows`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def metrics_line(step: int, metrics: Mapping[str, float]) -> str:
    """Return the line of log for a line of metrics.jsonl."""
    if "eval/loss" in metrics:
        spread = metrics["eval/loss_ci95"]
        margin = f" ± {_rounded(spread)}" if spread > 0 else ""
        return f"step {step}: eval loss {metrics['eval/loss']:.4f}{margin}"
    rate = f"{metrics['tokens_per_s']:,.0f} tokens/s"
    return f"step {step}: loss {metrics['loss']:.4f}, lr {metrics['learning_rate']:.2e}, {rate}"


def _rounded(spread: float) -> str:
    """Round to four decimals; a smaller figure to two digits, so that it is never 0.0000."""
    return f"{spread:.4f}" if spread >= 0.00005 else f"{spread:.1e}"


def sample_line(event: SampleEvent) -> str:
    """Return the line of log for a generated answer."""
    prompt, text, expected = map(_short, (event.prompt, event.text, event.expected))
    return f"step {event.step}: sample: {prompt} -> {text} (expected: {expected})"


def _short(text: str) -> str:
    line = text.replace("\n", "⏎")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
