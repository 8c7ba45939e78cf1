"""Dream: the one-token shift, the pad embedding, the names of Qwen2."""

from __future__ import annotations

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from plugin.models.dream import DreamConfig, DreamModel
from plugin.models.masks import first_tokens, shift_right
from tests.models.published_examples import DREAM, random_state
from tests.models.tensor_names import published_shapes


def dream() -> DreamModel:
    config = DreamConfig.from_dict(dict(DREAM))
    model = DreamModel(config).eval()
    model.load_state_dict(random_state(published_shapes(config), seed=1))
    return model


def test_dream_logits_are_aligned():
    """Row i is the head of state i-1; row 0 of its own, as Dream's cat([l[:, :1], l[:, :-1]], 1)."""
    model = dream()
    ids = torch.tensor([[2, 9, 63, 63, 5], [7, 63, 8, 3, 4]])
    raw = model.head(model.encode(ids))
    torch.testing.assert_close(
        model(ids).logits, torch.cat([raw[:, :1], raw[:, :-1]], 1), atol=1e-6, rtol=0
    )


def test_first_token_is_not_predicted_from_another_document():
    state = torch.arange(6.0).view(1, 6, 1)
    ids = torch.zeros(1, 6, dtype=torch.long)

    def shifted(mask):
        return shift_right(state, first_tokens(ids, mask)).flatten().tolist()

    assert shifted(None) == [0, 0, 1, 2, 3, 4]
    assert shifted(torch.tensor([[1, 1, 1, 1, 0, 0]])) == [0, 0, 1, 2, 3, 4]
    assert shifted(torch.tensor([[0, 0, 1, 1, 1, 1]])) == [0, 0, 2, 2, 3, 4]
    document = torch.tensor([0, 0, 0, 1, 1, 1])
    pairs = (document[:, None] == document)[None, None]
    assert shifted(pairs) == [0, 0, 1, 3, 3, 4]
    assert shifted(torch.where(pairs, 0.0, float("-inf"))) == [0, 0, 1, 3, 3, 4]


def test_pad_embedding_gets_gradients():
    """eos = pad = 1: the published class gives it no gradient, so that it never learns to stop."""
    model = dream()
    assert model.config.pad_token_id == model.config.eos_token_id == 1
    model(torch.tensor([[2, 1, 3, 1]])).logits.square().mean().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient[1].abs().sum() > 0
    assert (gradient[9] == 0).all()


def test_pad_row_is_not_zeroed_on_load_or_build(tmp_path):
    model = dream()
    model.save_pretrained(tmp_path)
    row = DreamModel.from_pretrained(tmp_path).get_input_embeddings().weight[1]
    assert torch.equal(row, model.get_input_embeddings().weight[1])
    assert (
        DreamModel(DreamConfig.from_dict(dict(DREAM))).get_input_embeddings().weight[1].abs().sum()
        > 0
    )


def test_dream_has_qwen2_names_and_shapes():
    shared = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    fields = {name: DREAM[name] for name in (*shared, "num_key_value_heads", "tie_word_embeddings")}
    qwen = Qwen2ForCausalLM(Qwen2Config(**fields)).state_dict()
    ours = dream().state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in qwen.items()
    }


def test_null_head_dim_means_the_default():
    model = DreamModel(DreamConfig.from_dict(DREAM | {"head_dim": None, "rope_theta": 1000000}))
    assert model(torch.tensor([[2, 3]])).logits.isfinite().all()
