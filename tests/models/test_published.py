"""Published checkpoints, read and written: names, shapes, fields, dtypes, and reference logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from plugin.models.published import REGISTRY, field_problems
from tests.models import reference
from tests.models.published_examples import (
    CONFIGS,
    DREAM_7B,
    LLADA_8B,
    TYING,
    build,
    families,
    random_state,
    some_ids,
    write_checkpoint,
)
from tests.models.tensor_names import name_problems, published_shapes


def stored_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    return names


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        (LLADA_8B, 16031162368 // 2),  # total_size of the published bf16 index
        (DREAM_7B, 7615616512),  # Qwen2.5-7B, from which Dream was grown
    ],
    ids=["LLaDA-8B", "Dream-7B"],
)
def test_8b_models_have_published_names_and_shapes(fields, parameters):
    config_class, model_class = REGISTRY[fields["model_type"]]
    config = config_class.from_dict(dict(fields))
    with torch.device("meta"):
        model = model_class(config)
    assert {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    } == published_shapes(config)
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters


@families
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_published_checkpoint_gives_reference_logits(family, attention, tied, kv_heads, tmp_path):
    changes = {"llada": {"n_kv_heads": kv_heads, "weight_tying": tied}}
    changes["Dream"] = {"num_key_value_heads": kv_heads, "tie_word_embeddings": tied}
    fields = CONFIGS[family] | changes[family]
    config_class, model_class = REGISTRY[family]
    state = random_state(published_shapes(config_class.from_dict(dict(fields))), seed=2)
    folder = write_checkpoint(tmp_path, fields, state)

    model, report = model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    assert not any(report.values()), report
    ids = some_ids(3, 9)
    real = torch.ones_like(ids)
    real[1, 6:] = 0
    real[2, :4] = 0  # left padding
    with torch.no_grad():
        ours = model.eval()(input_ids=ids, attention_mask=real).logits
        unpadded = model(input_ids=ids).logits
    assert ours.shape == (3, 9, 64)
    assert ours.isfinite().all()
    expected = reference.logits(state, fields, ids, real)
    assert expected.abs().max() > 1  # otherwise the comparison means nothing
    torch.testing.assert_close(ours[real.bool()], expected[real.bool()], atol=1e-5, rtol=0)
    torch.testing.assert_close(unpadded, reference.logits(state, fields, ids), atol=1e-5, rtol=0)


@families
def test_saving_writes_the_published_layout_back(family, tmp_path):
    fields = CONFIGS[family]
    config_class, model_class = REGISTRY[family]
    state = random_state(published_shapes(config_class.from_dict(dict(fields))), seed=3)
    first = write_checkpoint(tmp_path / "first", fields, state)
    model_class.from_pretrained(first, dtype=torch.float32).save_pretrained(
        tmp_path / "second", max_shard_size="20KB"
    )
    model_class.from_pretrained(tmp_path / "second").save_pretrained(tmp_path / "third")

    assert (tmp_path / "second" / "model.safetensors.index.json").exists()
    for folder in ("second", "third"):
        assert stored_names(tmp_path / folder) == set(state)
        saved = json.loads((tmp_path / folder / "config.json").read_text())
        rewritten = {
            "transformers_version",
            "torch_dtype",
        }  # the latter is `dtype` since transformers 5
        assert {name: saved[name] for name in fields.keys() - rewritten} == {
            name: value for name, value in fields.items() if name not in rewritten
        }
        assert (
            not {"rope_parameters", "head_dim", "hidden_size" if family == "llada" else "d_model"}
            & saved.keys()
        )
        assert ("tie_word_embeddings" in saved) == (family == "Dream")
    again = model_class.from_pretrained(tmp_path / "third").state_dict()
    for name, tensor in state.items():
        assert torch.equal(again[name], tensor), name


@families
def test_tied_head_is_stored_once_and_read_back(family, tmp_path):
    tying = TYING[family]
    model, _, state = build(family, **{tying: True})
    head = {"llada": "model.transformer.ff_out.weight", "Dream": "lm_head.weight"}[family]
    assert head not in state
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert stored_names(tmp_path) == set(state)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = some_ids(1, 5)
    assert torch.equal(again.eval()(ids).logits, model(ids).logits)


@families
def test_missing_and_unexpected_names_are_listed(family, tmp_path):
    model, fields, state = build(family)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert name_problems(model.config, shapes) == []

    lost, bent, *_ = sorted(shapes)
    shapes["model.vision.weight"] = shapes.pop(lost)
    shapes[bent] = (7, 7)
    text = "\n".join(name_problems(model.config, shapes))
    assert f"missing {lost}" in text
    assert "unexpected model.vision.weight" in text
    assert f"{bent} (7, 7) for " in text

    state["model.vision.weight"] = state.pop(lost)
    _, report = type(model).from_pretrained(
        write_checkpoint(tmp_path, fields, state), output_loading_info=True
    )
    assert set(report["missing_keys"]) == {lost}
    assert set(report["unexpected_keys"]) == {"model.vision.weight"}


def test_absent_fields_are_listed():
    assert field_problems("llada", LLADA_8B) == []
    assert field_problems("Dream", DREAM_7B) == []
    (problem,) = field_problems("llada", {"d_model": 8, "rope_theta": None})
    assert "no n_heads, n_layers, mlp_hidden_size, vocab_size, rope_theta, rms_norm_eps" in str(
        problem
    )


@families
def test_bf16_loading_has_bf16_error(family, tmp_path):
    model, fields, state = build(family)
    small = {name: tensor.bfloat16() for name, tensor in state.items()}
    loaded = (
        type(model)
        .from_pretrained(write_checkpoint(tmp_path, fields, small), dtype=torch.bfloat16)
        .eval()
    )
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    ids = some_ids(2, 8)
    with torch.no_grad():
        out = loaded(input_ids=ids).logits
    assert out.dtype == torch.bfloat16
    expected = reference.logits(
        {name: tensor.float() for name, tensor in small.items()}, fields, ids
    )
    assert (
        out.float() - expected
    ).norm() / expected.norm() < 0.03  # two layers of bf16, 8 bits a number
    widened = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(widened(input_ids=ids).logits, expected, atol=1e-5, rtol=0)


@families
@pytest.mark.parametrize("tied", [False, True])
def test_resizing_keeps_old_rows_of_both_ends(family, tied, tmp_path):
    model, _, _ = build(family, **{TYING[family]: tied})
    ids = some_ids(1, 5)
    before = model(input_ids=ids).logits
    model.resize_token_embeddings(70, mean_resizing=False)
    after = model(input_ids=ids).logits
    assert after.shape[-1] == 70
    assert torch.equal(before, after[..., : before.shape[-1]])
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).eval()(input_ids=ids).logits, after)


@families
def test_unsupported_field_is_refused_by_name(family):
    wrong = {
        "llada": {
            "alibi": True,
            "layer_norm_type": "default",
            "include_bias": True,
            "block_group_size": 4,
        }
        | {"activation_type": "gelu", "multi_query_attention": True, "rope": False, "clip_qkv": 8.0}
        | {"block_type": "sequential", "scale_logits": True, "n_kv_heads": 3, "embedding_size": 10},
        "Dream": {
            "hidden_act": "gelu",
            "use_sliding_window": True,
            "rope_scaling": {"type": "yarn", "factor": 4.0},
        }
        | {"num_key_value_heads": 3, "head_dim": 64},
    }[family]
    with pytest.raises(ValueError, match=r"config\.json: expected a") as error:
        build(family, **wrong)
    assert [name for name in wrong if name not in str(error.value)] == []
    assert "\n" not in str(error.value)
