"""Dream: Qwen2's decoder layers and names, with full attention and an explicit one-token shift.

Dream was trained from a causal model: hidden state i-1 predicts token i. `encode` returns the raw
states, `forward` aligned logits. A caller that gathers masked positions before the head subtracts
one from its indices, never across a document's start.

Shapes: S documents (rows), T tokens of a row, D = hidden_size, V = vocab_size. Source:
DreamLM/Dream, config.json and tensor names; Qwen2's RMSNorm, half-rotation RoPE and SwiGLU.
"""

# torch finds sub-modules by name at run time, and __post_init__ fills optional fields.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportIncompatibleVariableOverride=false, reportIncompatibleMethodOverride=false
# pyright: reportOperatorIssue=false, reportOptionalOperand=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from .masks import attention_bias, first_tokens, shift_right
from .rotary import positions_or_default, rotary_tables

# Fields that change the arithmetic, with the values that this file supports; () refuses any.
HONOURED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False,),
    "use_mrope": (False,),
    "rope_scaling": (),
    # names in transformers 5 of rope_theta and rope_scaling, absent from published files
    "rope_parameters": (),
    "layer_types": (),
}


class DreamConfig(PretrainedConfig):
    """Fields of the published config.json; others, auto_map included, are kept and written back.

    `rope_scaling` is declared although it is always null: the base class has a deprecated property
    of that name, which would warn and rename the field on save.
    """

    model_type = "Dream"

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1000000.0
    rope_scaling: dict | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = None
    max_window_layers: int = 28
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    use_cache: bool = False
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    causal: bool = False  # the autoregressive baseline

    def __post_init__(self, **unnamed: object) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if unnamed.get("head_dim") is None:  # Qwen2's attention would use a null too
            unnamed.pop("head_dim", None)
        super().__post_init__(**unnamed)

    def to_diff_dict(self) -> dict[str, object]:
        """Return the fields of config.json."""
        fields = super().to_diff_dict()
        if not self.causal:  # no published file has this field
            fields.pop("causal", None)
        return fields


def check_dream(config: DreamConfig) -> None:
    """Refuse fields that this file does not support. Raises ValueError naming all of them."""
    fields, heads = config.to_dict(), config.num_attention_heads
    honoured = HONOURED | {"head_dim": (config.hidden_size // heads,)}
    wrong = [
        f"{name}={fields[name]!r}"
        for name, values in honoured.items()
        if fields.get(name) not in (None, *values)
    ]
    if config.hidden_size % (2 * heads):
        wrong.append(f"hidden_size={config.hidden_size} with num_attention_heads={heads}")
    if heads % config.num_key_value_heads:
        kv_heads = config.num_key_value_heads
        wrong.append(f"num_attention_heads={heads} with num_key_value_heads={kv_heads}")
    if wrong:
        raise ValueError(
            f"config.json: expected a Dream model that this code supports, got {', '.join(wrong)}."
        )


class DreamModel(PreTrainedModel):
    """Dream with its output head; position i of the logits predicts token i."""

    config_class = DreamConfig
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Qwen2DecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: DreamConfig):
        super().__init__(config)
        check_dream(config)
        self.model = nn.Module()
        # No padding_idx: pad is eos, and a model that never learns eos never stops.
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(
            Qwen2DecoderLayer(config, n) for n in range(config.num_hidden_layers)
        )
        self.model.norm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for layer in self.model.layers:
            layer.self_attn.is_causal = False  # Qwen2's True would apply wherever no mask is passed
        self.post_init()

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segments: object | None = None,
    ) -> Tensor:
        """Return hidden states [S, T, D] after the last norm, raw: state i predicts token i+1.

        Args: input_ids [S, T]; attention_mask [S, T] (1 = real) or [S, 1, T, T]; position_ids
        [S, T], default 0..T-1; segments: instead of a mask, the documents of a single flat row.
        """
        config = self.config
        hidden = self.model.embed_tokens(input_ids)
        cos, sin = rotary_tables(
            positions_or_default(input_ids, position_ids),
            config.hidden_size // config.num_attention_heads,
            config.rope_theta,
        )
        # Qwen2 rotates in the dtype of its activations
        rotary = (cos.to(hidden.dtype), sin.to(hidden.dtype))
        bias = attention_bias(config, hidden, attention_mask)
        for layer in self.model.layers:
            hidden = layer(
                hidden,
                attention_mask=bias,
                position_embeddings=rotary,
                segments=segments,
                is_causal=config.causal,
            )
        return self.model.norm(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of hidden [..., D]."""
        return self.lm_head(hidden)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Return aligned logits [S, T, V]; arguments as in `encode`.

        A document's first token, which is never masked, is predicted from its own state.
        """
        hidden = self.encode(input_ids, attention_mask, position_ids)
        return MaskedLMOutput(
            logits=self.head(shift_right(hidden, first_tokens(input_ids, attention_mask)))
        )
