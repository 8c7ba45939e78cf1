"""Report of `check` for a terminal: plan, data, a preview of masked documents, verdict."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from ..base.errors import one_line
from ..run.lines import counted
from .launch import devices_line

STYLES = {
    "prompt": "cyan",
    "answer": "green",
    "end": "dim green",
    "masked": "bold white on magenta",
}
HOLE = "░"  # a masked token on a terminal without colour
KINDS = ("weights", "gradients", "optimizer", "activations", "logits", "heap")
BARS = " ▁▂▃▄▅▆▇█"


def print_check(plan: Mapping[str, Any], *, ok: bool) -> None:
    """Print the report on stdout; colour only on a terminal without NO_COLOR."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    plan = _harmless(plan)
    for note in plan["notes"]:
        console.print(f"note: {note}", markup=False)
    if launch := plan.get("launch"):
        console.print(f"devices     {devices_line(launch['gpus'], launch['processes'])}")
        console.print(f"train       {shlex.join(plan['command'])}", markup=False)
        console.print(
            f"cluster     examples/accelerate_ddp.yaml has the steps before: {launch['accelerate']}",
            markup=False,
        )
    if "steps" in plan:
        _print_run(console, plan)
        for split, report in plan["data"].items():
            _print_data(console, split, report)
        _print_preview(console, plan)
    console.print(
        "[bold green]ok: this job can run[/]" if ok else "[bold red]not ok: see the errors[/]"
    )


def _harmless(value: Any) -> Any:
    """Return `value` with every text in it escaped for one line of a terminal."""
    if isinstance(value, str):
        return one_line(value.replace("\n", "⏎"))
    if isinstance(value, Mapping):
        return {_harmless(key): _harmless(item) for key, item in value.items()}
    return [_harmless(item) for item in value] if isinstance(value, list | tuple) else value


def _print_run(console: Console, plan: Mapping[str, Any]) -> None:
    size, steps = plan["documents_per_step"], plan["steps"]
    console.print(f"model       {plan['parameters'] / 1e6:,.1f} M parameters, {plan['precision']}")
    passes = "(read as it trains)" if plan["passes"] is None else f"= {plan['passes']:g} passes"
    amount = f"{counted(steps, 'step')} x {counted(size, 'document')}"
    console.print(f"run         {amount} {passes}, about {plan['tokens']:,} tokens")
    fill = f" and {plan['fill_first_step']:,} of end fill" if plan["fill_first_step"] else ""
    console.print(
        f"first step  {plan['tokens_first_step']:,} tokens{fill}, {plan['supervised_first_step']:,} learned; tried on {plan['tried']}"
    )
    evaluated = (
        f"evaluated every {counted(plan['eval_every'], 'step')}"
        if plan["eval_every"]
        else "never evaluated"
    )
    console.print(f"meanwhile   {evaluated}, saved every {counted(plan['save_every'], 'step')}")
    needs = plan["memory"]
    unit, size = ("GB", 1e9) if needs["peak"] >= 1e9 else ("MB", 1e6)
    kinds = " + ".join(f"{needs[kind] / size:.2f} {kind}" for kind in KINDS if needs[kind])
    console.print(
        f"memory      {kinds}: about {needs['peak'] / size:.2f} {unit} at the peak, {needs['free'] / 1e9:.1f} GB free"
    )
    disk = plan["disk"]
    console.print(
        f"disk        {disk['needed_bytes'] / 1e9:.2f} GB needed, {disk['free_bytes'] / 1e9:.1f} GB free"
    )


def _print_data(console: Console, split: str, report: Mapping[str, Any]) -> None:
    if not report["rows"]:
        return
    length = report["length"]
    amount = f"{counted(report['documents'], 'document')} of {counted(report['rows'], 'row')}"
    console.print(f"{split:<11} {amount}, {counted(report['tokens'], 'token')}")
    peak = max(length["counts"]) or 1
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // peak)] for count in length["counts"])
    console.print(
        f"  lengths   0 {bars} {length['longest']}   max_length for 95 %: {length['p95']}, for 99 %: {length['p99']}",
        markup=False,
    )
    if report["truncated"]:
        rows = ", ".join(report["truncated_rows"])
        console.print(
            f"  truncated {report['truncated']} ({report['truncated_percent']} %), such as {rows}",
            markup=False,
        )
    for reason, count in report["dropped"].items():
        console.print(
            f"  dropped   {count}: {reason}, such as {', '.join(report['dropped_rows'][reason])}",
            markup=False,
        )


def _print_preview(console: Console, plan: Mapping[str, Any]) -> None:
    console.print(
        f"the model's view of {plan['preview_row']} (⟦ ⟧: one token of the tokenizer's own):",
        markup=False,
    )
    for view in plan["preview"]:
        text = Text(f"  t = {view['t']:<5} ")
        for run in view["runs"]:
            hidden = run["kind"] == "masked" and console.color_system is None
            text.append(HOLE * run["tokens"] if hidden else run["text"], style=STYLES[run["kind"]])
        console.print(text)
