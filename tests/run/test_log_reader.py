"""Reader of a log: the end of a huge one, new lines, earlier ones, other characters."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from plugin.run.log_reader import CHUNK, LogPart, LogReader


def append(path: Path, text: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def test_log_is_followed_in_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    append(log, "one\ntw")
    reader = LogReader(log)
    assert reader.read_on() == LogPart("one\n", "new")
    assert reader.read_on() is None
    append(log, "o\nthree\n")
    assert reader.read_on() == LogPart("two\nthree\n", "after")
    assert reader.read_before() is None


def test_empty_log_is_shown_and_then_followed(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.touch()
    reader = LogReader(log)
    assert reader.read_on() == LogPart("", "new")
    append(log, "a\n")
    assert reader.read_on() == LogPart("a\n", "after")


def test_control_characters_are_shown_and_markup_stays_text(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    append(log, b"\x1b[31m<b>red</b>\r10 %\xff\n")
    part = LogReader(log).read_on()
    assert part == LogPart("\\x1b[31m<b>red</b>\\r10 %\ufffd\n", "new")


def test_earlier_lines_come_whole_up_to_the_first(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    lines = [f"line {number} {'x' * (number % 50)}" for number in range(10_000)]
    append(log, "\n".join(lines) + "\n")
    reader = LogReader(log)
    part = reader.read_on()
    assert part
    found = part.text
    while earlier := reader.read_before():
        assert earlier.place == "before"
        assert len(earlier.text) <= CHUNK
        found = earlier.text + found
    assert found.splitlines() == lines


def test_log_of_a_gigabyte_opens_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        file.truncate(1 << 30)  # sparse
        file.seek(0, 2)
        file.write(b"\nthe end\n")
    began = time.thread_time()
    part = LogReader(log).read_on()
    assert time.thread_time() - began < 0.1
    assert part
    assert part.text.endswith("the end\n")
    assert len(part.text) < 5 * CHUNK  # zeros are shown as \x00


def test_replaced_or_shorter_log_is_shown_anew(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    append(log, "one\ntwo\n")
    reader = LogReader(log)
    reader.read_on()
    log.write_text("1\n")
    assert reader.read_on() == LogPart("1\n", "new")
    log.rename(tmp_path / "old")
    append(log, "other\n")
    assert reader.read_on() == LogPart("other\n", "new")


def test_burst_is_skipped_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    append(log, "one\n")
    reader = LogReader(log)
    reader.read_on()
    append(log, "many words\n" * CHUNK)
    part = reader.read_on()
    assert part
    assert part.place == "new"
    assert len(part.text) <= CHUNK
    assert reader.read_before()


def test_line_without_end_is_shown_once_it_is_long(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    append(log, "a\n")
    reader = LogReader(log)
    reader.read_on()
    append(log, "x" * CHUNK)
    assert reader.read_on() == LogPart("x" * CHUNK, "after")


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("secret")
    (tmp_path / "log.txt").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="a link"):
        LogReader(tmp_path / "log.txt").read_on()


def test_key_in_a_live_log_is_not_shown(tmp_path: Path) -> None:
    append(tmp_path / "log.txt", f"token hf_{'a' * 34}\n")
    part = LogReader(tmp_path / "log.txt").read_on()
    assert part
    assert part.text == "token [redacted]\n"
