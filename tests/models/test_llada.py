"""LLaDA: defaults of absent fields, rows beyond the vocabulary, precision of RMSNorm and RoPE."""

from __future__ import annotations

import torch

from plugin.models.llada import LLaDAConfig, LLaDAModelLM
from plugin.models.rotary import rotary_tables, rotate
from tests.models.published_examples import LLADA, random_state
from tests.models.tensor_names import published_shapes

NAMES = [
    "model.transformer.wte.weight",
    "model.transformer.ln_f.weight",
    "model.transformer.ff_out.weight",
    "model.transformer.blocks.0.attn_norm.weight",
    "model.transformer.blocks.0.ff_norm.weight",
    "model.transformer.blocks.0.q_proj.weight",
    "model.transformer.blocks.0.k_proj.weight",
    "model.transformer.blocks.0.v_proj.weight",
    "model.transformer.blocks.0.attn_out.weight",
    "model.transformer.blocks.0.ff_proj.weight",
    "model.transformer.blocks.0.up_proj.weight",
    "model.transformer.blocks.0.ff_out.weight",
]


def test_llada_names_written_out():
    model = LLaDAModelLM(LLaDAConfig.from_dict(LLADA | {"n_layers": 1}))
    assert sorted(model.state_dict()) == sorted(NAMES)
    assert all(
        parameter.dim() != 1 or "norm" in name or "ln_f" in name
        for name, parameter in model.named_parameters()
    )


def test_llada_absent_fields_have_published_defaults():
    config = LLaDAConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=50, mlp_hidden_size=None)
    assert (config.n_kv_heads, config.embedding_size, config.mlp_hidden_size) == (4, 50, 128)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 1, 4)
    assert config.tie_word_embeddings is False


def test_llada_keeps_embedding_rows_beyond_vocabulary():
    model = LLaDAModelLM(LLaDAConfig.from_dict(dict(LLADA)))
    assert model.get_input_embeddings().weight.shape == (64, 32)
    assert model(input_ids=torch.tensor([[63, 2]])).logits.shape == (1, 2, 64)


def test_llada_gate_is_ff_proj():
    """Swapping the two tensors, which have equal shapes, must change the result."""
    config = LLaDAConfig.from_dict(dict(LLADA))
    model = LLaDAModelLM(config).eval()
    state = random_state(published_shapes(config), seed=5)
    model.load_state_dict(state)
    ids = torch.tensor([[2, 3, 4]])
    before = model(ids).logits
    block = "model.transformer.blocks.0."
    state[block + "ff_proj.weight"], state[block + "up_proj.weight"] = (
        state[block + "up_proj.weight"],
        state[block + "ff_proj.weight"],
    )
    model.load_state_dict(state)
    assert (model(ids).logits - before).abs().max() > 0.1


def test_rope_rotation_by_hand():
    """A head of width 2 turns by `position` radians; one of width 4 pairs 0 with 2 and 1 with 3."""
    cos, sin = rotary_tables(torch.tensor([[1]]), 2, 10000.0)
    torch.testing.assert_close(
        rotate(torch.tensor([[[[1.0, 0.0]]]]), cos, sin), torch.tensor([[[[0.5403023, 0.8414710]]]])
    )
    cos, sin = rotary_tables(torch.tensor([[2]]), 4, 100.0)  # angles 2 and 0.2
    turned = rotate(torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]]), cos, sin)
    torch.testing.assert_close(
        turned, torch.tensor([[[[-0.4161468, 0.9800666, 0.9092974, 0.1986693]]]])
    )


def test_rope_is_fp32_in_a_bf16_model():
    """At position 4000 neither a bf16 angle (spacing 16) nor a bf16 table of frequencies suffices."""
    x = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary_tables(torch.tensor([[4001]]), 8, 500000.0)
    assert cos.dtype == torch.float32
    turned = rotate(x.bfloat16(), cos, sin)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(
        turned, rotate(x.bfloat16().float(), cos, sin).bfloat16(), atol=0, rtol=0
    )
    model = LLaDAModelLM(LLaDAConfig.from_dict(dict(LLADA))).bfloat16()
    assert not list(model.buffers())  # no value that a cast could have rounded


def test_rms_norm_is_fp32_in_a_bf16_model():
    norm = LLaDAModelLM(LLaDAConfig.from_dict(dict(LLADA))).bfloat16().model.transformer.ln_f
    x = (torch.arange(32.0) + 300).bfloat16()
    exact = x.double() / (x.double().square().mean() + 1e-5).sqrt()
    assert torch.equal(norm(x), exact.bfloat16())
