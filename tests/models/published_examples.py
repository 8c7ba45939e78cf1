"""Published config.json files, tiny ones of the same form, and weights and checkpoints for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from plugin.models.published import REGISTRY
from tests.models.tensor_names import published_shapes

LLADA_8B: dict = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        "AutoModel": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}

DREAM_7B: dict = {
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_dream.DreamConfig",
        "AutoModel": "modeling_dream.DreamModel",
    },
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "Dream",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151643,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.2",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}

# Tiny, but with all features: grouped keys, more embedding rows than words, two layers.
LLADA: dict = LLADA_8B | {
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "mlp_hidden_size": 48,
    "vocab_size": 60,
    "embedding_size": 64,
    "max_sequence_length": 64,
    "mask_token_id": 59,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "a_field_of_tomorrow": {"kept": [1, 2]},
}
DREAM: dict = DREAM_7B | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "mask_token_id": 63,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "a_field_of_tomorrow": {"kept": [1, 2]},
}


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Return weights so large that a wrong sign, order or rotation shows.

    They make attention far from uniform.
    """
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if "norm" in name or "ln_f" in name:
            state[name] = 1 + 0.3 * torch.randn(shape, generator=rng)
        else:
            state[name] = torch.randn(shape, generator=rng) * (0.25 if len(shape) == 2 else 0.4)
    for head in {"model.transformer.ff_out.weight", "lm_head.weight"} & state.keys():
        state[head] /= (
            3  # logits of a few units: 1e-5 is about ten times the fp32 rounding of such a model
        )
    return state


def write_checkpoint(folder: Path, config: dict, state: dict[str, torch.Tensor]) -> Path:
    """Write a checkpoint as other tools do: config.json, two shards, an index; without our code."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(state)
    halves = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, held in halves.items():
        save_file({name: state[name] for name in held}, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())},
        "weight_map": {name: file for file, held in halves.items() for name in held},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


CONFIGS = {"llada": LLADA, "Dream": DREAM}
TYING = {"llada": "weight_tying", "Dream": "tie_word_embeddings"}
families = pytest.mark.parametrize("family", CONFIGS)


def build(family: str, **changes):
    """Return (model in eval mode, its config.json, its weights) with large random weights."""
    fields = CONFIGS[family] | changes
    config_class, model_class = REGISTRY[family]
    config = config_class.from_dict(dict(fields))
    model = model_class(config).eval()
    state = random_state(published_shapes(config), seed=1)
    model.load_state_dict(state, strict=not config.tie_word_embeddings)
    model.tie_weights()
    return model, fields, state


def some_ids(S: int, T: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 58, (S, T), generator=torch.Generator().manual_seed(seed))
