"""Features of texts: mean pooling without padding, the exported encoder, latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import FAMILIES, tiny_model, word_tokenizer
from transformers import AutoModel

from plugin.evaluation.features import Encoder, latency, load_encoder
from plugin.models.backbones import BACKBONES
from plugin.models.publish import write_encoder
from plugin.models.published import REGISTRY

WORDS = [f"w{number}" for number in range(35)]
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w11 w12"]
ENCODERS = [family for family in FAMILIES if family not in REGISTRY]
CPU = torch.device("cpu")


def exported(family: str, folder: Path) -> tuple[Any, Path]:
    model: Any = tiny_model(family)
    write_encoder(folder / family, model, word_tokenizer(WORDS))
    return model, folder / family


@pytest.mark.parametrize("family", ENCODERS)
def test_exported_encoder_has_the_trained_states(family: str, tmp_path: Path) -> None:
    """AutoModel's hidden states are those that the trained model's head is given."""
    model, folder = exported(family, tmp_path)
    ids, mask = torch.tensor([[2, 9, 11, 4, 3], [2, 8, 3, 0, 0]]), torch.ones(2, 5).long()
    mask[1, 3:] = 0
    plain: Any = AutoModel.from_pretrained(folder).eval()
    seen = mask.bool()
    with torch.no_grad():
        wanted = BACKBONES[family].encode(model, ids, mask)[seen]
        got = plain(input_ids=ids, attention_mask=mask).last_hidden_state[seen]
    assert (got - wanted).abs().max() <= 1e-6
    assert wanted.abs().max() > 0.1
    assert str(tmp_path) not in (folder / "tokenizer_config.json").read_text()


@pytest.mark.parametrize("family", ENCODERS)
def test_features_are_means_of_each_text_alone(family: str, tmp_path: Path) -> None:
    _, folder = exported(family, tmp_path)
    encoder = load_encoder(folder, CPU, 32)
    found = encoder.features(TEXTS)
    for row, text in zip(found, TEXTS, strict=True):
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = encoder.model(input_ids=ids).last_hidden_state[0]
        assert (states.mean(0) - row).abs().max() < 1e-5


def test_longer_texts_are_cut_at_the_length(tmp_path: Path) -> None:
    _, folder = exported("bert", tmp_path)
    short, full = (load_encoder(folder, CPU, length) for length in (4, 32))
    assert torch.allclose(short.features(["w1 w2 w3 w4"]), full.features(["w1 w2"]), atol=1e-6)


def test_random_encoder_has_other_weights_of_the_same_shapes(tmp_path: Path) -> None:
    _, folder = exported("modernbert", tmp_path)
    encoder = load_encoder(folder, CPU, 32)
    first, again, other = (encoder.randomised(seed) for seed in (1, 1, 2))
    shapes = [weight.shape for weight in encoder.model.parameters()]
    assert [weight.shape for weight in first.model.parameters()] == shapes
    assert torch.equal(first.features(TEXTS), again.features(TEXTS))
    for one in (other, encoder):
        assert not torch.allclose(first.features(TEXTS), one.features(TEXTS), atol=1e-3)


def test_latency_is_measured_at_both_batch_sizes() -> None:
    model: Any = tiny_model("bert")
    tokenizer = word_tokenizer(WORDS)
    encoder = Encoder(model=model.bert, tokenizer=tokenizer, device=CPU, max_length=32)
    found = latency(encoder, TEXTS)
    assert set(found) == {"1", "32"}
    for each in found.values():
        per_second = 1000 / each["ms_per_document"]
        assert each["documents_per_s"] == pytest.approx(per_second, rel=0.05)
    assert found["32"]["ms_per_document"] < found["1"]["ms_per_document"]
