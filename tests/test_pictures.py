"""The README's pictures: small, self-contained, and drawn by examples/pictures.py."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.support import ROOT

from examples import pictures
from plugin.inference.model import load_for_sampling

ELSEWHERE = re.compile(
    r"@font-face|@import|href|url\((?!#)"
)  # `url(#...)` is a part of the picture itself


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("chat.svg", "README.md"),
        ("studio-run.png", "README.md"),
        ("studio-chat.png", "README.md"),
        ("curves.png", "docs/studio.md"),
    ],
)
def test_a_committed_picture_is_small_and_shown(name: str, page: str) -> None:
    assert 10_000 < (pictures.DOCS / name).stat().st_size < 250_000
    address = f"({name})" if page.startswith("docs/") else f"(docs/{name})"
    assert address in (ROOT / page).read_text(encoding="utf-8")


def test_the_committed_chat_loads_nothing_from_elsewhere() -> None:
    assert (
        ELSEWHERE.findall(
            (pictures.DOCS / "chat.svg").read_text(encoding="utf-8").replace('url("#', "url(#")
        )
        == []
    )


def test_a_dialogue_is_drawn_with_its_frames(tiny_bert: Path) -> None:
    given = {"max_new_tokens": 8, "block_length": 8, "steps": 8}
    drawn = pictures.denoising(
        load_for_sampling(str(tiny_bert), given), ["What is A & B?", "Say sun."]
    )
    words = [
        "".join(text.itertext())
        for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")
    ]
    lines = "".join(words).replace("\xa0", " ").splitlines()
    assert [line.rpartition("you  ")[2].strip() for line in lines if "you  " in line] == [
        "What is A & B?",
        "Say sun.",
    ]
    assert sum("bot  " in line for line in lines) == 2 * (pictures.FRAMES + 1)
    assert sum("8 steps" in line for line in lines) == 2
    assert "░" in drawn
    assert ELSEWHERE.findall(drawn) == []


def test_without_a_browser_it_says_so_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pictures.py"])
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None)
    monkeypatch.setattr(pictures, "train", lambda run_dir, **options: pytest.fail("it trained"))
    assert pictures.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("pictures: no chromium is here")
    assert said.count("\n") == 1
