"""Page that shows a prepared corpus: one HTML file that needs no other."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7dbd; --soft: #8882; --mark: #e0a03055 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; font-weight: normal }
th { color: #888 } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; width: 7rem }
.cards { display: flex; flex-wrap: wrap; gap: .8rem } .card { background: var(--soft);
  border-radius: .5rem; padding: .6rem 1rem; min-width: 8rem } .card b { display: block;
  font-size: 1.35rem; font-variant-numeric: tabular-nums }
.bar { background: var(--bar); height: .8rem; border-radius: .15rem; min-width: 1px }
td.b { width: 50% } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem;
  border-bottom: 1px solid var(--line); padding: .8rem 0 }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; max-height: 16rem;
  overflow: auto; background: var(--soft); padding: .5rem .7rem; border-radius: .4rem }
mark { background: var(--mark); color: inherit } code { font-size: .85rem } small { color: #888 }
"""


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report, as `seal` makes it."""
    manifest = report["manifest"]
    title = " | ".join(source["spec"] for source in manifest["sources"])
    parts = [
        f"<h1>Prepared corpus</h1><p>{escape(title)}</p>",
        _cards(manifest),
        _section("Left out", _dropped(report)),
        _section("Sources", _sources(report)),
        _section("Lengths of training documents, in tokens", _lengths(manifest["totals"])),
        _section("Tokenizer", _tokenizer(manifest["tokenizer"])),
        _section("Clusters of near-duplicates", _clusters(report["clusters"])),
        _section("Duplicates, with the document that stayed", _pairs(report["duplicates"])),
        _section("First stored documents", _firsts(report["first_documents"])),
        _section("Work", _stages(manifest)),
    ]
    head = f"<meta charset='utf-8'><title>Prepared corpus</title><style>{_STYLE}</style>"
    return (
        f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _cards(manifest: Mapping[str, Any]) -> str:
    totals, split = manifest["totals"], manifest["split"]
    rows = sum(source["rows"] for source in manifest["sources"])
    cards = {
        "rows read": rows,
        "documents to train on": totals["documents"],
        "tokens to train on": totals["tokens"],
        "documents held out": split["eval_documents"],
        "tokens in the vocabulary": manifest["tokenizer"]["vocab_size"],
        "longest document, in tokens": totals["longest"],
    }
    found = "".join(f"<div class='card'><b>{n:,}</b>{name}</div>" for name, n in cards.items())
    return f"<div class='cards'>{found}</div>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def cells(kind: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{kind}{' class=n' if place in numbers else ''}>{value}</{kind}>"
            for place, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', heads)}</tr>{body}</table>"


def _bar(value: float, most: float) -> str:
    return f"<div class='bar' style='width:{100 * value / max(most, 1e-9):.2f}%'></div>"


def _bars(heads: Sequence[str], values: Sequence[tuple[str, int]]) -> str:
    """Return a table of names, numbers and bars."""
    most = max((value for _, value in values), default=0)
    rows = [(escape(name), f"{value:,}", _bar(value, most)) for name, value in values]
    return _table([*heads, ""], rows, numbers=(1,))


def _dropped(report: Mapping[str, Any]) -> str:
    dropped = report["dropped"]
    note = "<p><small>Every row of it is a line of dropped.jsonl, with its twin.</small></p>"
    if not dropped:
        return "<p>Nothing.</p>"
    return _bars(("reason", "rows"), list(dropped.items())) + note


def _sources(report: Mapping[str, Any]) -> str:
    rows = [
        (
            escape(source["spec"]),
            f"{source['weight']:g}",
            f"{source['rows']:,}",
            f"{source['documents']:,}",
            f"{of['tokens']:,}",
            f"{100 * of['share_of_a_pass']:.1f} %",
        )
        for source, of in zip(
            report["manifest"]["sources"], report["tokens_by_source"], strict=True
        )
    ]
    heads = ("source", "weight", "rows", "documents kept", "tokens to train on", "of a pass")
    return _table(heads, rows, numbers=range(1, 6))


def _lengths(totals: Mapping[str, Any]) -> str:
    first = next((place for place, count in enumerate(totals["length_counts"]) if count), 0)
    edges, counts = totals["length_edges"][first:], totals["length_counts"][first:]
    names = [
        f"{low:,}" if high - low == 1 else f"{low:,} to {high - 1:,}"
        for low, high in pairwise(edges)
    ]
    return _bars(("tokens", "documents"), list(zip(names, counts, strict=True)))


def _tokenizer(facts: Mapping[str, Any]) -> str:
    trained = facts.get("trained_on")
    origin = (
        f"trained on {trained['documents']:,} documents, {trained['bytes']:,} bytes"
        if trained
        else f"named: {escape(facts['name'])}"
    )
    text = (
        f"<p>{facts['vocab_size']:,} tokens, {origin}. Encoded by {facts['engine']}, whose ids of "
        f"{facts['checked_rows']:,} documents were compared. Digest <code>{facts['digest']}</code>.</p>"
    )
    if compared := facts.get("compared"):
        rows = [
            (
                escape(one["name"]),
                f"{one['vocab_size']:,}",
                f"{one['tokens_per_word']:.3f}",
                f"{one['bytes_per_token']:.3f}",
            )
            for one in compared
        ]
        heads = ("on held-out text", "vocabulary", "tokens a word", "bytes a token")
        text += _table(heads, rows, numbers=(1, 2, 3))
    if longest := facts.get("longest_tokens"):
        shown = " ".join(f"<code>{escape(repr(token))}</code>" for token in longest)
        text += f"<p><small>Longest tokens:</small> {shown}</p>"
    return text


def _clusters(clusters: Mapping[str, Any]) -> str:
    if not clusters["count"]:
        return ""
    sizes = sorted((int(size), count) for size, count in clusters["sizes"].items())
    groups: dict[str, int] = {}
    for size, count in sizes:
        top = 1 << (size - 1).bit_length()
        name = f"{size}" if size == 2 else f"{top // 2 + 1:,} to {top:,}"
        groups[name] = groups.get(name, 0) + count
    rows = [
        (str(document), f"{size:,}", f"{least:.3f}")
        for document, size, least in clusters["largest"]
    ]
    heads = ("largest clusters: first document", "documents", "least similar pair")
    return _bars(("documents of a cluster", "clusters"), list(groups.items())) + _table(
        heads, rows, numbers=(1, 2)
    )


def _pairs(pairs: Sequence[Mapping[str, str]]) -> str:
    found: list[str] = []
    for pair in pairs:
        dropped, kept = _marked(pair["dropped_text"], pair["kept_text"])
        left = f"<small>{escape(pair['reason'])}: {escape(pair['dropped'])}</small>"
        right = f"<small>kept: {escape(pair['kept'])}</small>"
        found.append(
            f"<div class='pair'><div>{left}<div class='text'>{dropped}</div></div>"
            f"<div>{right}<div class='text'>{kept}</div></div></div>"
        )
    return "".join(found)


def _marked(one: str, other: str) -> tuple[str, str]:
    """Return two texts as HTML, with the words marked in which they differ."""
    words = [re.findall(r"\s+|\S+", text) for text in (one, other)]
    sides: tuple[list[str], list[str]] = ([], [])
    matcher = difflib.SequenceMatcher(None, *words, autojunk=False)
    for kind, *borders in matcher.get_opcodes():
        for side, (text, start, end) in enumerate(
            zip(words, borders[::2], borders[1::2], strict=True)
        ):
            part = escape("".join(text[start:end]))
            sides[side].append(part if kind == "equal" or not part else f"<mark>{part}</mark>")
    return "".join(sides[0]), "".join(sides[1])


def _firsts(texts: Mapping[str, str]) -> str:
    return "".join(
        f"<p><small>{split}</small></p><div class='text'>{escape(text)}</div>"
        for split, text in texts.items()
    )


def _stages(manifest: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{one['tasks']:,}", f"{one['cpu_seconds']:,.1f}", f"<code>{one['key']}</code>")
        for name, one in manifest["stages"].items()
    ]
    made = manifest["made_by"]
    libraries = ", ".join(f"{name} {version}" for name, version in made["libraries"].items())
    command = escape(" ".join(made["command"]))
    return (
        _table(("step", "tasks", "CPU seconds", "key"), rows, numbers=(1, 2))
        + f"<p><small>Version {escape(made['version'])}; {libraries}.</small><br>"
        + f"<code>{command}</code></p>"
    )
