"""Store of tokenised documents: round trip in memory and through memory-mapped files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.tiny import random_documents

from plugin.data.documents import Builder, Documents


def three() -> Documents:
    builder = Builder()
    for ids, first, row in (
        ([2, 8, 3, 9, 3], 3, "a.jsonl:1"),
        ([2, 7, 3], 1, "a.jsonl:2"),
        ([2, 5, 5, 3], 2, "b\n.txt:3"),
    ):
        builder.add(np.array(ids, np.int32), np.arange(len(ids)) >= first, first, row)
    return builder.build()


def test_documents_are_stored_end_to_end_and_read_back() -> None:
    documents = three()
    assert documents.ids.tolist() == [2, 8, 3, 9, 3, 2, 7, 3, 2, 5, 5, 3]
    assert documents.offsets.tolist() == [0, 5, 8, 12]
    assert documents.lengths.tolist() == [5, 3, 4]
    assert len(documents) == 3
    one = documents[1]
    assert (one.ids.tolist(), one.supervised.tolist(), one.prompt, one.index) == (
        [2, 7, 3],
        [False, True, True],
        1,
        1,
    )
    assert documents.rows == ("a.jsonl:1", "a.jsonl:2", "b .txt:3"), "a row id is one line"


def test_saved_store_is_mapped_and_equal(tmp_path: Path) -> None:
    for name, documents in (
        ("three", three()),
        ("many", random_documents(300)),
        ("none", Builder().build()),
    ):
        documents.save(tmp_path / name)
        loaded = Documents.load(tmp_path / name)
        assert isinstance(loaded.ids, np.memmap)
        assert isinstance(loaded.supervised, np.memmap)
        for field in ("ids", "supervised", "offsets", "prompts"):
            ours, theirs = getattr(documents, field), getattr(loaded, field)
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
        assert loaded.rows == documents.rows
        assert len(loaded) == len(documents)


def test_mapped_store_is_read_only(tmp_path: Path) -> None:
    three().save(tmp_path / "kept")
    assert not Documents.load(tmp_path / "kept")[0].ids.flags.writeable
