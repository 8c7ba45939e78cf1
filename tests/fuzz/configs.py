"""Fields of a config.json: valid, of another kind, missing, or unknown."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# A small model of each family, by its published names.
SMALL: dict[str, dict[str, Any]] = {
    "bert": {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
    },
    "roberta": {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "type_vocab_size": 1,
    },
    "modernbert": {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        "norm_eps": 1e-5,
    },
    "llada": {
        "vocab_size": 300,
        "d_model": 16,
        "mlp_hidden_size": 24,
        "n_layers": 1,
        "n_heads": 4,
        "n_kv_heads": 2,
        "max_sequence_length": 64,
        "rope_theta": 1e4,
        "rms_norm_eps": 1e-5,
        "embedding_size": 304,
        "mask_token_id": 4,
    },
    "Dream": {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rope_theta": 1e4,
        "rms_norm_eps": 1e-6,
    },
}
# Without one of these, a model has its published size.
SIZES = (
    "vocab_size",
    "hidden_size",
    "d_model",
    "intermediate_size",
    "mlp_hidden_size",
    "num_hidden_layers",
    "n_layers",
)
# Fields that other programs write, or that change what a library builds.
OTHERS = (
    *(
        "architectures",
        "auto_map",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "tie_word_embeddings",
        "weight_tying",
    ),
    *(
        "attention_dropout",
        "hidden_dropout_prob",
        "initializer_range",
        "init_std",
        "position_embedding_type",
        "is_decoder",
    ),
    *(
        "rope_scaling",
        "rope_parameters",
        "layer_types",
        "head_dim",
        "sliding_window",
        "use_cache",
        "problem_type",
        "num_labels",
    ),
    *(
        "id2label",
        "label2id",
        "pruned_heads",
        "chunk_size_feed_forward",
        "add_cross_attention",
        "attn_implementation",
    ),
    *(
        "pad_token_id",
        "eos_token_id",
        "bos_token_id",
        "mask_token_id",
        "cls_token_id",
        "output_attentions",
        "return_dict",
    ),
    *(
        "quantization_config",
        "hidden_activation",
        "classifier_pooling",
        "embedding_dropout",
        "mlp_ratio",
        "activation_type",
    ),
    *(
        "_name_or_path",
        "_attn_implementation",
        "model_type",
        "name_or_path",
        "text_config",
        "base_model_tp_plan",
        "to_dict",
    ),
    *(
        "",
        "__class__",
        "save_pretrained",
        "vocab_size",
        "attribute_map",
        "local_files_only",
        "kwargs",
        "self",
        "trust_remote_code",
    ),
)


def odd() -> st.SearchStrategy[Any]:
    """Make values of any kind: small values that train, and huge values that must be refused."""
    whole = st.integers(-3, 64) | st.sampled_from(
        (300, 304, 400, 4096, 10**7, 2 * 10**9, 2**63, 10**12, 10**400)
    )
    other = st.sampled_from(
        (0.5, 2.0, -1.0, 16.0, 1e-12, 1e30, float("inf"), float("nan"), True, False, None)
    )
    words = st.sampled_from(
        (
            "",
            "16",
            "gelu",
            "silu",
            "none",
            "float16",
            "auto",
            "full_attention",
            "eager",
            "é\ud800",
            "a\nb",
            "x" * 50,
        )
    )
    simple = whole | other | words
    keys = st.sampled_from(
        (
            "rope_type",
            "type",
            "factor",
            "rope_theta",
            "0",
            "",
            "full_attention",
            "sliding_attention",
            "quant_method",
        )
    )
    return st.recursive(
        simple,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=4,
    )


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Draw a family and the fields of a small model, up to three of them odd, missing or added."""
    family = draw(st.sampled_from(tuple(SMALL)))
    fields = {"model_type": family, **SMALL[family]}
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 3)))):
        name = draw(st.sampled_from(tuple(SMALL[family])) | st.sampled_from(OTHERS))
        if draw(st.sampled_from((True, True, True, False))):
            value = draw(odd())
            many = name.endswith("layers") and isinstance(value, int) and 8 < value <= 512
            fields[name] = 8 if many else value
        elif name not in SIZES:
            fields.pop(name, None)
    return family, fields
