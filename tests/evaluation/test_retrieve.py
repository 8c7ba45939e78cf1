"""Retrieval probe: ranks, recall and MRR worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny import tiny_model, word_tokenizer

from plugin.evaluation import retrieve as module
from plugin.evaluation.features import Encoder
from plugin.evaluation.retrieve import ranks, recall, reciprocal_rank, retrieve

WORDS = [f"w{number}" for number in range(35)]


def test_ranks_and_metrics_of_worked_vectors() -> None:
    """Similarities to the documents (1, 0), (0, 1), (3, 4) / 5, whatever their lengths."""
    documents = torch.tensor([[2.0, 0.0], [0.0, 9.0], [3.0, 4.0]])
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    found = ranks(queries, documents, torch.tensor([0, 1, 2, 2]))
    assert found.tolist() == [1, 3, 2, 2]
    assert recall(found, 1) == 0.25
    assert recall(found, 2) == 0.75
    assert reciprocal_rank(found) == pytest.approx((1 + 1 / 3 + 1 / 2 + 1 / 2) / 4)


def test_equal_similarities_rank_the_own_document_last() -> None:
    same = torch.ones(5, 3)
    assert ranks(same, same, torch.arange(5)).tolist() == [5] * 5


def test_queries_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(11, 4, generator=rng), torch.randn(7, 4, generator=rng)
    own = torch.randint(0, 7, (11,), generator=rng)
    together = ranks(queries, documents, own)
    monkeypatch.setattr(module, "QUERIES", 3)
    assert torch.equal(ranks(queries, documents, own), together)
    assert len(set(together.tolist())) > 3


def test_a_query_equal_to_its_document_is_found() -> None:
    model: Any = tiny_model("bert")
    encoder = Encoder(
        model=model.bert, tokenizer=word_tokenizer(WORDS), device=torch.device("cpu"), max_length=32
    )
    texts = [f"w{n} w{n + 1} w{n + 2}" for n in range(30)]
    found = retrieve(encoder, [(text, text) for text in texts])
    assert (found["recall_at_1"], found["recall_at_10"], found["mrr"]) == (1.0, 1.0, 1.0)
    shuffled = retrieve(encoder, list(zip(texts, texts[15:] + texts[:15], strict=True)))
    assert shuffled["recall_at_1"] < 0.3
