"""Tiled weights: the closed form element by element, the map of layers, refusals, training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import (
    FAMILIES,
    MASK,
    cpu,
    rules,
    steps_of,
    tiny_config,
    tiny_model,
    train_tiny,
)
from torch import Tensor

from plugin.base.errors import JobError
from plugin.config.families import DECODERS
from plugin.data.documents import Builder, Documents
from plugin.models.tiling import check_tiling, layer_map, tile, tile_into, tile_parts
from plugin.objectives.masked import evenly

LARGE = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 5}


def large(family: str, **changes: Any) -> dict[str, Any]:
    """Return the changes to tiny_config that make a larger model, with heads of the same width."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    own = heads if family in ("llada", "Dream", *DECODERS) else {"num_attention_heads": 4}
    return {**LARGE, **own, **changes}


def closed_form(weight: Tensor, rows: int, columns: int) -> list[list[float]]:
    """Return new[r][c] = W[(r - hoff) mod h][(c - woff) mod w], element by element."""
    h, w = weight.shape
    hoff, woff = (rows - h) // 2, (columns - w) // 2
    return [
        [weight[(r - hoff) % h][(c - woff) % w].item() for c in range(columns)] for r in range(rows)
    ]


def test_tile_of_a_vector_is_the_published_example() -> None:
    """The recipe's own test: three values to eight, from the middle."""
    assert tile(torch.tensor([1, 2, 3]), (8,)).tolist() == [2, 3, 1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("shape", [(8, 7), (3, 9), (7, 4), (3, 4)])
def test_tile_of_a_matrix_is_the_closed_form(shape: tuple[int, int]) -> None:
    weight = torch.arange(12.0).view(3, 4)
    assert tile(weight, shape).tolist() == closed_form(weight, *shape)


def test_parts_of_a_fused_layer_are_tiled_apart() -> None:
    weight = torch.arange(24.0).view(6, 4)
    parts = [closed_form(weight[start : start + 2], 5, 6) for start in (0, 2, 4)]
    assert tile_parts(weight, (15, 6), 3).tolist() == [row for part in parts for row in part]
    assert tile_parts(weight, (15, 6), 3).tolist() != tile(weight, (15, 6)).tolist()


def test_layer_map_of_the_recipe() -> None:
    """22 layers to 28: round(i 22 / 28), halves to even."""
    found = layer_map(22, 28)
    assert found[:9] == [0, 1, 2, 2, 3, 4, 5, 6, 6]
    assert (found[7], found[21], found[27]) == (6, 16, 21), "5.5 to 6, 16.5 to 16"
    assert sorted(set(found)) == list(range(22))


@pytest.mark.parametrize(
    ("small", "layers", "wanted"),
    [(3, 3, [0, 1, 2]), (2, 4, [0, 0, 1, 1]), (1, 3, [0, 0, 0]), (2, 5, [0, 0, 1, 1, 1])],
)
def test_layer_map_ends_at_the_last_layer(small: int, layers: int, wanted: list[int]) -> None:
    assert layer_map(small, layers) == wanted


def test_modernbert_is_tiled_by_the_closed_form() -> None:
    small, new = tiny_model("modernbert", 1), tiny_model("modernbert", 2, **large("modernbert"))
    new_norm = new.model.layers[1].attn_norm.weight.detach().clone()
    tile_into(new, small)
    assert layer_map(3, 5) == [0, 1, 1, 2, 2]
    before, after = small.model.layers[1], new.model.layers[2]

    fused, got = before.attn.Wqkv.weight, after.attn.Wqkv.weight  # [48, 16] -> [96, 32]
    for part in range(3):
        wanted = closed_form(fused[16 * part : 16 * (part + 1)], 32, 32)
        assert got[32 * part : 32 * (part + 1)].tolist() == wanted
    glu, got = before.mlp.Wi.weight, after.mlp.Wi.weight  # [48, 16] -> [80, 32]
    for part in range(2):
        wanted = closed_form(glu[24 * part : 24 * (part + 1)], 40, 32)
        assert got[40 * part : 40 * (part + 1)].tolist() == wanted
    assert after.mlp.Wo.weight.tolist() == closed_form(before.mlp.Wo.weight, 32, 40)
    table = small.get_input_embeddings().weight
    assert new.get_input_embeddings().weight.tolist() == closed_form(table, 40, 32)
    assert torch.equal(new.decoder.bias, small.decoder.bias)
    assert torch.equal(new.model.layers[1].attn_norm.weight, new_norm)


def test_first_norm_without_a_source_stays_new() -> None:
    """Layer 1 of six is made from layer 0, which has no norm before its attention."""
    small = tiny_model("modernbert", 1)
    new = tiny_model("modernbert", 2, **large("modernbert", num_hidden_layers=6))
    with torch.no_grad():
        for layer in small.model.layers[1:]:
            layer.attn_norm.weight.fill_(3.0)
    tile_into(new, small)
    assert layer_map(3, 6)[:3] == [0, 0, 1]
    assert new.model.layers[1].attn_norm.weight.tolist() == [1.0] * 32
    assert new.model.layers[2].attn_norm.weight.tolist() == [3.0] * 32


@pytest.mark.parametrize("family", FAMILIES)
def test_model_of_the_same_size_is_the_source(family: str) -> None:
    small, new = tiny_model(family, 1), tiny_model(family, 2)
    ids = torch.tensor([[2, 9, 11, MASK, 30, 3]])
    assert not torch.allclose(new(input_ids=ids).logits, small(input_ids=ids).logits)
    tile_into(new, small)
    assert torch.equal(new(input_ids=ids).logits, small(input_ids=ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_larger_model_comes_from_the_source(family: str) -> None:
    small = tiny_model(family, 1)
    new = tiny_model(family, 2, **large(family))
    with torch.no_grad():
        for weight in small.parameters():
            weight.fill_(7.0)
    tile_into(new, small)
    kept = {name for name, weight in new.named_parameters() if not (weight == 7.0).all()}
    assert kept == set()


@pytest.mark.parametrize("family", ["bert", "llada", "Dream"])
def test_projections_of_other_families_are_the_closed_form(family: str) -> None:
    small, new = tiny_model(family, 1), tiny_model(family, 2, **large(family))
    tile_into(new, small)
    name = {
        "bert": "bert.encoder.layer.{}.attention.self.key",
        "llada": "model.transformer.blocks.{}.k_proj",
        "Dream": "model.layers.{}.self_attn.k_proj",
    }[family]
    before, after = small.get_submodule(name.format(1)), new.get_submodule(name.format(3))
    assert layer_map(2, 5)[3] == 1
    assert after.weight.tolist() == closed_form(before.weight, *after.weight.shape)
    if after.bias is not None:
        assert after.bias.tolist() == tile(before.bias, tuple(after.bias.shape)).tolist()


def refused(family: str, source: str = "", **changes: Any) -> str:
    """Return what init_from is refused for: a tiny model of `changes` for a larger model."""
    config = tiny_config(family, **large(family))
    with pytest.raises(JobError) as caught:
        check_tiling(config, tiny_config(source or family, **changes))
    (problem,) = caught.value.problems
    assert (problem.field, problem.code) == ("init_from", 4)
    return problem.line


def test_another_family_is_refused() -> None:
    line = refused("bert", "modernbert")
    assert "expected a bert model, as model_config is, got a modernbert." in line


def test_everything_that_does_not_tile_is_named_together() -> None:
    line = refused(
        "bert",
        hidden_size=48,
        num_attention_heads=3,
        num_hidden_layers=6,
        intermediate_size=64,
        vocab_size=41,
        max_position_embeddings=32,
        type_vocab_size=1,
        hidden_act="relu",
    )
    expected, _, got = line.partition(", got ")
    assert expected.partition("model_config: ")[2].split(", ") == [
        "hidden_size at most 32",
        "intermediate_size at most 40",
        "num_hidden_layers at most 5",
        "vocabulary 40",
        "max_position_embeddings 64",
        "type_vocab_size 2",
        "hidden_act gelu",
        "heads 8 wide",
        "an even number of heads",
    ]
    for value in ("hidden_size 48", "vocabulary 41", "hidden_act relu", "num_attention_heads 3"):
        assert value in got


def test_grouped_heads_keep_their_key_heads() -> None:
    line = refused("llada", num_key_value_heads=4)
    assert "expected a model that fits model_config: 2 heads for each key head, got 1 for" in line


def test_source_without_a_tensor_is_refused() -> None:
    small = tiny_model("modernbert", norm_bias=False)
    new = tiny_model("modernbert", **large("modernbert", norm_bias=True))
    with pytest.raises(JobError, match=r"no source of model\.embeddings\.norm\.bias"):
        tile_into(new, small)


def sums(count: int) -> Documents:
    """Return documents `[CLS] a a+b a+2b ... [SEP]` modulo 32, as words from 5."""
    rng, builder = np.random.default_rng(3), Builder()
    for number in range(count):
        first, step = rng.integers(0, 32), rng.integers(1, 4)
        words = 5 + (first + step * np.arange(14)) % 32
        ids = np.concatenate([[2], words, [3]]).astype(np.int32)
        builder.add(ids, np.arange(16) > 0, 1, f"sums:{number}")
    return builder.build()


@pytest.mark.slow
def test_tiled_model_is_ahead_of_a_random_one() -> None:
    """A larger model tiled from a trained one needs at most 120 steps for the loss that a random
    one has after 200. Measured: 59.

    At three times this learning rate, a random model learns this toy corpus within the 200 steps,
    and a tiled one gains nothing.
    """
    documents = sums(256)
    how = rules(t_min=0.3, t_max=0.3, norm="masked", weight=evenly)
    shape = {"initializer_range": 0.02, "max_position_embeddings": 32}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}

    def losses(model: Any, steps: int) -> np.ndarray:
        """Return the losses of a run, smoothed over 20 steps."""
        adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
        make = steps_of(documents, how, step_size=16, batch_size=16)
        found = train_tiny(cpu(), model, make, steps=steps, optimizer=adam).losses
        return np.convolve(found, np.ones(20) / 20, "valid")

    small = tiny_model("modernbert", 1, **shape, **sizes)
    losses(small, 400)
    wide = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    new = {**shape, **wide, "num_attention_heads": 4}
    random, tiled = tiny_model("modernbert", 2, **new), tiny_model("modernbert", 2, **new)
    tile_into(tiled, small)
    reached = losses(random, 200)[-1]
    found = losses(tiled, 120)
    assert found[0] > reached, "repeated weights do not compute what the smaller model computed"
    assert found.min() <= reached
