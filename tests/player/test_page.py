"""The player's page: steps as changes, its size, its colours, hostile texts, answers as text."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from plugin.player.page import MOST_TEXT, TEMPLATE, player_page
from plugin.player.records import DenoisingRecord

HOSTILE = "</script><img src=x onerror=alert(1)>[[DATA]]\x1b[2J\u202e\ud800"


def record(step: int, positions: list[int], text: str, tokens: Any = None, **more: Any) -> Any:
    content = {"step": step, "block": 0, "positions": positions, "text": text, "tokens": tokens}
    return DenoisingRecord.read({**content, "ids": [1] * len(positions), **more})


def data_of(page: str) -> dict[str, Any]:
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def answer(tokens: int) -> list[DenoisingRecord]:
    """Return the steps of an answer, a token of six characters each, from right to left."""
    words = [f"w{place:04} " for place in range(tokens)]
    return [
        record(step, [place], "░" * place + "".join(words[place:]), [words[place]])
        for step, place in enumerate(reversed(range(tokens)))
    ]


def test_steps_hold_what_changed_and_the_canvas_length() -> None:
    steps = [
        record(0, [1], "░ b░", [" b"]),
        record(1, [0, 2], "a b c", ["a", " c"]),
        record(2, [1], "a x c░", [" x"]),  # another token, and a canvas that grows
    ]
    assert data_of(player_page("p", "r", steps)) == {
        "given": [],
        "steps": [
            [0, 0, 3, [1], [" b"]],
            [1, 0, 3, [0, 2], ["a", " c"]],
            [2, 0, 4, [1], [" x"]],
        ],
    }


def test_given_texts_and_written_holes_are_no_masks() -> None:
    steps = [record(0, [1], "the░ ░", ["░"], given=[(0, "the")])]
    data = data_of(player_page("p", "r", steps))
    assert data == {"given": [[0, "the"]], "steps": [[0, 0, 3, [1], ["░"]]]}


def test_a_long_answer_stays_below_300_kilobytes() -> None:
    page = player_page("prompt", "remark", answer(1024))
    assert len(page.encode()) < 60_000


def test_an_answer_without_tokens_plays_as_text() -> None:
    old = [each.model_copy(update={"tokens": None}) for each in answer(700)]
    texts = data_of(player_page("p", "r", old))["texts"]
    assert sum(len(text) for *_, text in texts) <= MOST_TEXT
    assert texts[-1][3] == old[-1].text
    assert sum(new for _, _, new, _ in texts) == 700
    assert [step for step, *_ in texts] == sorted({step for step, *_ in texts})


def test_texts_are_no_markup_and_hold_no_control_characters() -> None:
    page = player_page(HOSTILE, HOSTILE, [record(0, [0], HOSTILE, [HOSTILE])])
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert not re.search(r"https?:|src=[\"']|@import|url\(|\x1b|\u202e|\ud800", page)
    assert "onerror=alert(1)&gt;&#91;&#91;DATA]]\\x1b[2J\\u202e" in page
    assert data_of(page)["steps"][0][4][0].startswith("</script>")


def test_no_steps_give_a_page() -> None:
    assert data_of(player_page("p", "r", [])) == {"given": [], "steps": []}


@pytest.mark.parametrize("theme", ["dark", "light", ""])
def test_theme_is_that_of_the_page(theme: str) -> None:
    assert f'<html lang="en" data-theme="{theme}">' in player_page("p", "r", [], theme=theme)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_text_colour_has_the_contrast_of_wcag_aa() -> None:
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", TEMPLATE.read_text())
    colours = {name: pair for name, *pair in found}
    texts = {name for name in colours if re.fullmatch(r"c\d|ink|dim", name)}
    assert len(texts) == 11
    for theme in (0, 1):
        card = luminance(colours["card"][theme])
        for name in texts:
            low, high = sorted((luminance(colours[name][theme]), card))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, theme)
