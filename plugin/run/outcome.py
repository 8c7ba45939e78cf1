"""Words for people about a run: its figures, its samples, its end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..base.errors import Outcome
from .folder import RunFolder

LONGEST = 200  # characters shown of a prompt or an answer


def outcome_line(outcome: Outcome, folder: RunFolder) -> str:
    """Return the one line a run ends with."""
    if outcome.error:
        return outcome.error.line
    if outcome.outcome == "stopped":
        return f"stopped {_stopped(outcome.result, folder)}"
    result: dict[str, Any] = {**(outcome.result or {})}
    spent = result.get("throughput", {}).get("training_seconds")
    steps = counted(result.get("steps", 0), "step") + (
        f" in {spent} s" if spent is not None else ""
    )
    loss = result.get("eval_loss")
    shown = f", eval loss {loss:.4f}" if isinstance(loss, float) else ""
    return f"{outcome.outcome}: {steps}{shown}; {result.get('seconds', 0)} s with loading, evaluation and saving"


def _stopped(result: Mapping[str, Any] | None, folder: RunFolder) -> str:
    saved = folder.checkpoints()
    if result is None:
        return (
            f"at once, without saving; the last checkpoint is {saved[-1].name}"
            if saved
            else "at once; nothing was saved"
        )
    if not result.get("steps"):
        return "before the first step; there is nothing to save"
    loss = result.get("loss")
    loss = _last_loss(folder) if loss is None else loss
    shown = f", loss {loss:.4f}" if isinstance(loss, float) else ""
    return f"after step {result['steps']}{shown}" + (
        f"; saved as {saved[-1].name}" if saved else ""
    )


def _last_loss(folder: RunFolder) -> float | None:
    """Return the loss of the newest step that was reported, for a run that stopped before it logged
    any.
    """
    try:
        return json.loads((folder / "progress.json").read_text(encoding="utf-8"))["loss"]
    except (OSError, ValueError, KeyError):
        return None


def counted(number: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun: `1 row`, `2,000 rows`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def metrics_line(step: int, metrics: Mapping[str, float]) -> str:
    """Return one line of log for one object of metrics.jsonl."""
    if "eval/loss" in metrics:
        spread = metrics["eval/loss_ci95"]
        return f"step {step}: eval loss {metrics['eval/loss']:.4f}" + (
            f" ± {_rounded(spread)}" if spread > 0 else ""
        )
    rate = f"{metrics['tokens_per_s']:,.0f} tokens/s"
    return f"step {step}: loss {metrics['loss']:.4f}, lr {metrics['learning_rate']:.2e}, {rate}"


def _rounded(spread: float) -> str:
    """Round to four decimals, or to two digits of what is smaller: never 0.0000."""
    return f"{spread:.4f}" if spread >= 0.00005 else f"{spread:.1e}"


def sample_line(event: Mapping[str, Any]) -> str:
    """Return one line of log for one generated answer."""
    prompt, text, expected = (_short(event[name]) for name in ("prompt", "text", "expected"))
    return f"step {event['step']}: sample: {prompt} -> {text} (expected: {expected})"


def _short(text: str) -> str:
    line = text.replace("\n", "⏎")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
