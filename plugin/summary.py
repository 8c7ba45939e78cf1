"""Words for people about a run's end."""

from __future__ import annotations

from collections.abc import Mapping

from .job import Outcome


def outcome_line(outcome: Outcome) -> str:
    """The one line a run ends with."""
    if outcome.error:
        return outcome.error.line
    if outcome.result is None:
        return f"{outcome.outcome}: ended at once; what was saved before is whole"
    result = outcome.result
    loss = result.get("eval_loss")
    shown = f", eval loss {loss:.4f}" if isinstance(loss, float) else ""
    return f"{outcome.outcome}: {result.get('steps', 0)} steps in {result.get('seconds', 0)} s{shown}"


def metrics_line(step: int, metrics: Mapping[str, float]) -> str:
    """One line of log for one object of metrics.jsonl."""
    if "eval/loss" in metrics:
        return f"step {step}: eval loss {metrics['eval/loss']:.4f} ± {metrics['eval/loss_ci95']:.4f}"
    rate = f"{metrics['tokens_per_s']:,.0f} tokens/s"
    return f"step {step}: loss {metrics['loss']:.4f}, lr {metrics['learning_rate']:.2e}, {rate}"
