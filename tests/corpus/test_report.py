"""Report of a corpus: one page that needs no other file, whatever the texts hold."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from helpers.corpora import run_prepare, sentences, write_texts

from plugin.corpus.report import _marked


class Page(HTMLParser):
    """Open tags, and the text of a page."""

    def __init__(self, content: str):
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_well_formed_and_shows_texts_as_text(tmp_path: Path) -> None:
    evil = "</div><script>alert(1)</script> & <b>" + " word" * 60
    texts = [evil, evil + " more", *sentences(60)]
    data = write_texts(tmp_path / "<img src=x>" / "a&b.jsonl", [*texts, texts[5], ""])
    run_prepare(data, tmp_path / "out")
    content = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(content)
    assert page.open == []
    assert not page.names & {"script", "img", "b", "link"} - {"b"}
    assert "<script" not in content
    assert not re.search(r"(src|href)=", content.replace("&lt;img src=x&gt;", ""))
    for words in ("Left out", "near duplicate", "exact duplicate", "empty", "a&b.jsonl:2"):
        assert words in page.text
    assert evil in page.text


def test_report_holds_what_the_page_shows(tmp_path: Path) -> None:
    texts = sentences(80, words=60)
    data = write_texts(tmp_path / "a.jsonl", [*texts, *texts[:7]])
    run_prepare(data, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["dropped"] == {"exact duplicate": 7}
    assert len(report["duplicates"]) == 7
    for pair in report["duplicates"]:
        assert pair["dropped_text"] == pair["kept_text"] == texts[int(pair["kept"][8:]) - 1]
    totals = report["manifest"]["totals"]
    assert sum(totals["length_counts"]) == totals["documents"]
    first = report["first_documents"]["train"]
    assert first in texts


def test_words_that_differ_are_marked() -> None:
    assert _marked("one two three", "one too three") == (
        "one <mark>two</mark> three",
        "one <mark>too</mark> three",
    )
    assert _marked("a <b>", "a") == ("a<mark> &lt;b&gt;</mark>", "a")
