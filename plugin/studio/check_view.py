"""View of what a check of the form's values has found."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from ..base.errors import Problem, one_line
from ..parent.check_report import KINDS
from ..parent.launch import devices_line
from ..run.lines import counted
from .frame import heading

_TAGS = {"masked": "mark", "prompt": "span", "answer": "b", "end": "small"}


def show_problems(problems: Sequence[Problem | Mapping[str, Any] | str], title: str) -> None:
    """Show a list of problems; a screen reader says it at once."""
    with ui.element("section").classes("problems").props('role="alert"'):
        heading(title)
        with ui.element("ul"):
            for one in problems:
                text = str(Problem(**one)) if isinstance(one, Mapping) else str(one)
                TextElement(tag="li", text=text)


def show_plan(plan: Mapping[str, Any]) -> None:
    """Show the plan of a checked job: the run, its memory, its data, and what the model sees."""
    heading("Plan")
    _facts(_plan_facts(plan))
    if "steps" in plan:
        heading("Memory")
        _memory(plan["memory"])
        for split, report in plan["data"].items():
            if report["rows"]:
                heading(f"Data: {split}")
                _data(report)
        heading(f"The model's view of {plan['preview_row']}")
        _preview(plan["preview"])
    if plan["notes"]:
        heading("Notes")
        with ui.element("ul"):
            for note in plan["notes"]:
                TextElement(tag="li", text=one_line(note))


def _facts(facts: Mapping[str, str]) -> None:
    with ui.element("dl").classes("pairs"):
        for name, text in facts.items():
            TextElement(tag="dt", text=name)
            TextElement(tag="dd", text=one_line(text))


def _plan_facts(plan: Mapping[str, Any]) -> dict[str, str]:
    facts: dict[str, str] = {}
    if launch := plan.get("launch"):
        facts["devices"] = devices_line(launch["gpus"], launch["processes"])
    if "steps" in plan:
        passes = plan["passes"]
        held, disk = plan["eval_every"], plan["disk"]
        facts |= {
            "model": f"{plan['parameters']:,} parameters, {plan['precision']}",
            "run": f"{counted(plan['steps'], 'step')} x "
            f"{counted(plan['documents_per_step'], 'document')}, about {plan['tokens']:,} tokens",
            "passes": "read as it trains" if passes is None else f"{passes:g} over the data",
            "first step": f"{plan['tokens_first_step']:,} tokens, {plan['fill_first_step']:,} of "
            f"end fill, {plan['supervised_first_step']:,} learned; tried on {plan['tried']}",
            "evaluated": f"every {counted(held, 'step')}" if held else "never",
            "saved": f"every {counted(plan['save_every'], 'step')}",
            "disk": f"{_size(disk['needed_bytes'])} needed, {_size(disk['free_bytes'])} free",
        }
    return facts | {"command": shlex.join(plan["command"])}


def _size(count: float) -> str:
    unit, size = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6)
    return f"{count / size:,.2f} {unit}"


def _memory(needs: Mapping[str, Any]) -> None:
    """Draw the memory of the peak by kind, in the width of what is free."""
    peak, free = needs["peak"], needs["free"]
    kinds = {kind: needs[kind] for kind in KINDS if needs[kind]}
    verdict = "it fits" if peak <= free else "it does not fit"
    line = f"about {_size(peak)} at the peak, {_size(free)} free on {needs['device']}: {verdict}"
    ui.label(line)
    whole = max(peak, free, 1)
    bar = ui.element("div").classes("memory").props(f'role=img aria-label="{line}"')
    with bar:
        for kind, size in kinds.items():
            ui.element("div").classes(f"part {kind}").style(f"width:{100 * size / whole:.3f}%")
        if free < peak:
            ui.element("div").classes("edge").style(f"left:{100 * free / whole:.3f}%")
    with ui.element("ul").classes("legend"):
        for kind, size in kinds.items():
            with ui.element("li"):
                ui.element("span").classes(f"part {kind}").props("aria-hidden=true")
                TextElement(tag="span", text=f"{kind} {_size(size)} ({size / (peak or 1):.0%})")


def _data(report: Mapping[str, Any]) -> None:
    length = report["length"]
    rows, documents = counted(report["rows"], "row"), counted(report["documents"], "document")
    facts = {
        "documents": f"{documents} of {rows}, {counted(report['tokens'], 'token')}, "
        f"{report['supervised']:,} learned",
        "lengths": f"half up to {length['p50']}, 95 % up to {length['p95']}, "
        f"99 % up to {length['p99']}, longest {length['longest']}",
    }
    if report["truncated"]:
        which = f"{report['truncated']} ({report['truncated_percent']} %)"
        facts["truncated"] = f"{which}, such as {', '.join(report['truncated_rows'])}"
    for key, rows_of in (("dropped", "dropped_rows"), ("remarks", "remark_rows")):
        for reason, count in report[key].items():
            which = ", ".join(map(str, report[rows_of].get(reason, ())))
            facts[f"{key}: {reason}"] = f"{count}, such as {which}"
    _facts(facts)
    edges, p95, p99 = length["edges"], length["p95"], length["p99"]
    marks = [{"name": f"95 %: {p95}", "xAxis": p95}] if p95 < p99 else []
    marks.append({"name": f"99 %: {p99}" if marks else f"95 and 99 %: {p99}", "xAxis": p99})
    points = [
        [(low + high) / 2, count]
        for low, high, count in zip(edges, edges[1:], length["counts"], strict=False)
    ]
    dim, colour = {"color": "#888"}, {"color": "#8a7ad8"}
    chart = {
        "grid": {"left": 56, "right": 72, "top": 24, "bottom": 40},
        "toolbox": {"right": 0, "top": -6},
        "textStyle": dim,
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "value", "name": "tokens", "nameLocation": "middle", "nameGap": 24}
        | {"min": edges[0], "max": edges[-1]},
        "yAxis": {"type": "value", "name": "documents", "minInterval": 1},
        "series": [
            {"type": "bar", "data": points, "itemStyle": colour, "barWidth": "70%"}
            | {"markLine": {"symbol": "none", "label": {"formatter": "{b}"} | dim, "data": marks}}
        ],
        "animation": False,
    }
    if len(points) > 1:
        ui.echart(chart).classes("lengths").props('role=img aria-label="histogram of lengths"')


def _preview(views: Sequence[Mapping[str, Any]]) -> None:
    with ui.element("div").classes("preview legend small"):
        for kind, tag in _TAGS.items():
            TextElement(tag=tag, text=kind).classes(kind)
    for view in views:
        with ui.element("p").classes("preview"):
            TextElement(tag="span", text=f"t = {view['t']}, {view['masked']} masked: ").classes(
                "dim"
            )
            for run in view["runs"]:
                found = TextElement(
                    tag=_TAGS[run["kind"]], text=one_line(run["text"].replace("\n", "⏎"))
                )
                found.classes(run["kind"])
