"""LLaDA: Llama's layers with full attention, parameters named as in the published checkpoints.

With `causal` in its configuration, which no published file has, it is the autoregressive baseline:
a token sees those before it, and state i - 1 predicts token i.

Saving and loading need no key map, because modules have the published names:
`model.transformer.blocks.N.ff_proj` is the gate, a block's `ff_out` the down projection,
`model.transformer.ff_out` the output head.

Shapes: S documents (rows), T tokens of a row, D = d_model, V = embedding_size (>= vocab_size), H
heads, E = D / H. Source: ML-GSAI/LLaDA, its config.json and index of tensor names; Llama formulas
(RMSNorm, half-rotation RoPE, SwiGLU).
"""

# torch finds sub-modules by name at run time, and __post_init__ fills optional fields.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportIncompatibleVariableOverride=false, reportIncompatibleMethodOverride=false
# pyright: reportOperatorIssue=false, reportOptionalOperand=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward

from .masks import attention_bias, first_tokens, shift_right
from .rotary import positions_or_default, rotary_tables, rotate

# Fields that change the arithmetic, with the values that this file supports; () refuses any. Fields
# that only the published training code reads (init_fn, init_device, precision, flash_attention,
# alibi_bias_max, ...) are kept and ignored. rope_full_precision is ignored too: RoPE is always fp32
# here, as the published models ask.
HONOURED: dict[str, tuple[object, ...]] = {
    "block_type": ("llama",),
    "block_group_size": (1,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "bias_for_layer_norm": (False,),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "activation_type": ("silu", "swiglu"),  # in a llama block both mean silu(gate) * up
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "multi_query_attention": (False,),
    "alibi": (False,),
    "rope": (True,),
    "rope_parameters": (),  # any scaling
    "clip_qkv": (),
    "scale_logits": (False,),
    "residual_dropout": (0.0,),
    "embedding_dropout": (0.0,),
}


class LLaDAConfig(PretrainedConfig):
    """Fields of the published config.json; others, auto_map included, are kept and written back."""

    model_type = "llada"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "num_key_value_heads": "n_kv_heads",
        "tie_word_embeddings": "weight_tying",
    }

    d_model: int = 4096
    n_heads: int = 32
    n_kv_heads: int | None = None
    n_layers: int = 32
    mlp_ratio: int = 4
    mlp_hidden_size: int | None = None
    vocab_size: int = 126464
    embedding_size: int | None = None
    max_sequence_length: int = 4096
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5
    weight_tying: bool = False
    attention_dropout: float = 0.0
    init_std: float = 0.02
    use_cache: bool = False
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    causal: bool = False

    def __post_init__(self, **unnamed: object) -> None:
        self.n_kv_heads = self.n_heads if self.n_kv_heads is None else self.n_kv_heads
        self.mlp_hidden_size = (
            self.mlp_ratio * self.d_model if self.mlp_hidden_size is None else self.mlp_hidden_size
        )
        self.embedding_size = (
            self.vocab_size if self.embedding_size is None else self.embedding_size
        )
        super().__post_init__(**unnamed)

    def to_dict(self) -> dict[str, object]:
        """Return all fields and transformers' name of weight_tying, which peft reads."""
        return super().to_dict() | {"tie_word_embeddings": self.weight_tying}

    def to_diff_dict(self) -> dict[str, object]:
        """Return the fields of config.json, published names only."""
        fields = super().to_diff_dict()
        del fields["tie_word_embeddings"]
        if not self.causal:  # no published file has this field
            fields.pop("causal", None)
        return fields


def check_llada(config: LLaDAConfig) -> None:
    """Refuse fields that this file does not support. Raises ValueError naming all of them."""
    fields = config.to_dict()
    wrong = [
        f"{name}={fields[name]!r}"
        for name, values in HONOURED.items()
        if fields.get(name) not in (None, *values)
    ]
    if config.d_model % (2 * config.n_heads):  # RoPE rotates pairs, so a head's width is even
        wrong.append(f"d_model={config.d_model} with n_heads={config.n_heads}")
    if config.n_heads % config.n_kv_heads:
        wrong.append(f"n_heads={config.n_heads} with n_kv_heads={config.n_kv_heads}")
    if config.embedding_size < config.vocab_size:
        wrong.append(f"embedding_size={config.embedding_size} below vocab_size={config.vocab_size}")
    if wrong:
        raise ValueError(
            f"config.json: expected a LLaDA model that this code supports, got {', '.join(wrong)}."
        )


class LLaDABlock(GradientCheckpointingLayer):
    """Layer: h + attn(norm(h)), then h + ff_out(silu(ff_proj(norm(h))) * up_proj(norm(h)))."""

    def __init__(self, config: LLaDAConfig, layer_idx: int):
        super().__init__()
        D, head_dim = config.d_model, config.d_model // config.n_heads
        # transformers' attention functions read these from the module that calls them.
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = False
        self.num_key_value_groups = config.n_heads // config.n_kv_heads
        self.head_dim = head_dim

        self.attn_norm = LlamaRMSNorm(D, config.rms_norm_eps)  # fp32 inside
        self.q_proj = nn.Linear(D, D, bias=False)
        self.k_proj = nn.Linear(D, config.n_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(D, config.n_kv_heads * head_dim, bias=False)
        self.attn_out = nn.Linear(D, D, bias=False)
        self.ff_norm = LlamaRMSNorm(D, config.rms_norm_eps)
        self.ff_proj = nn.Linear(D, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(D, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, D, bias=False)

    def attend(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor | None, segments: object | None
    ) -> Tensor:
        """Return the attention of x [S, T, D], which `bias` or `segments` restricts.

        `bias` is made by attention_bias; `segments` are the documents of a flat batch.
        """
        S, T, D = x.shape
        q, k, v = (
            project(x).view(S, T, -1, self.head_dim).transpose(1, 2)  # [S, H, T, E]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, _ = attention(
            self,
            rotate(q, *rotary),
            rotate(k, *rotary),
            v,
            bias,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            segments=segments,
            is_causal=self.config.causal,
        )  # [S, T, H, E]
        return self.attn_out(mixed.reshape(S, T, D))

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        bias: Tensor | None,
        segments: object | None = None,
    ) -> Tensor:
        hidden = hidden + self.attend(self.attn_norm(hidden), rotary, bias, segments)
        x = self.ff_norm(hidden)
        return hidden + self.ff_out(F.silu(self.ff_proj(x)) * self.up_proj(x))


class LLaDAModelLM(PreTrainedModel):
    """LLaDA with its output head; position i of the logits predicts token i."""

    config_class = LLaDAConfig
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["LLaDABlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # With weight_tying the head shares the embedding's tensor and is absent from files, as in the
    # published ones.
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "model.transformer.ff_out.weight": "model.transformer.wte.weight"
    }

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        check_llada(config)
        self.model = nn.Module()
        self.model.transformer = nn.ModuleDict(
            {
                # no padding_idx: pad is eos, which has to be learned
                "wte": nn.Embedding(config.embedding_size, config.d_model),
                "blocks": nn.ModuleList(LLaDABlock(config, n) for n in range(config.n_layers)),
                "ln_f": LlamaRMSNorm(config.d_model, config.rms_norm_eps),
                "ff_out": nn.Linear(config.d_model, config.embedding_size, bias=False),
            }
        )
        self.post_init()

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segments: object | None = None,
    ) -> Tensor:
        """Return hidden states [S, T, D] after the last norm; state i belongs to token i.

        That of a causal model predicts token i + 1. Args: input_ids [S, T]; attention_mask [S, T]
        (1 = real) or [S, 1, T, T]; position_ids [S, T], default 0..T-1; segments: instead of a
        mask, the documents of a single flat row.
        """
        parts = self.model.transformer
        hidden = parts.wte(input_ids)
        rotary = rotary_tables(
            positions_or_default(input_ids, position_ids),
            self.config.d_model // self.config.n_heads,
            self.config.rope_theta,
        )
        bias = attention_bias(self.config, hidden, attention_mask)
        for block in parts.blocks:
            hidden = block(hidden, rotary, bias, segments)
        return parts.ln_f(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of hidden [..., D]."""
        return self.model.transformer.ff_out(hidden)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Return logits [S, T, V]; arguments as in `encode`.

        A causal model predicts a document's first token from its own state, which means nothing.
        """
        hidden = self.encode(input_ids, attention_mask, position_ids)
        if self.config.causal:
            hidden = shift_right(hidden, first_tokens(input_ids, attention_mask))
        return MaskedLMOutput(logits=self.head(hidden))

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.transformer.wte = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.transformer.ff_out

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.transformer.ff_out = new_embeddings

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resize as transformers does, and set embedding_size to the new number of rows too."""
        wte = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.embedding_size = wte.weight.shape[0]
        return wte
