"""Forward of LLaDA and Dream: full attention, without effect of padding or packed neighbours."""

from __future__ import annotations

import peft
import pytest
import torch

from plugin.models.dream import DreamConfig
from plugin.models.masks import attention_bias
from tests.models import reference
from tests.models.published_examples import DREAM, TYING, build, families, some_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_query_sees_a_key(attention, dtype):
    """Also where the caller's mask hides all keys: some kernels return NaN for an empty row.

    Others attend to all keys there.
    """
    config = DreamConfig.from_dict(dict(DREAM))
    config._attn_implementation = attention
    hidden = torch.zeros(2, 4, 32, dtype=dtype)
    padded = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    document = torch.tensor([[0, 0, 1, -1], [-1, -1, -1, -1]])
    pairs = ((document[:, :, None] == document[:, None]) & (document >= 0)[:, None])[:, None]
    infinite = torch.zeros(pairs.shape, dtype=dtype).masked_fill(~pairs, float("-inf"))
    lowest = torch.zeros(pairs.shape).masked_fill(~pairs, torch.finfo(torch.float32).min)
    old = torch.zeros(pairs.shape).masked_fill(~pairs, -1e4)

    keys = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)[:, None, None].expand(
        2, 1, 4, 4
    )
    blocks = torch.eye(4, dtype=torch.bool).repeat(2, 1, 1, 1)
    blocks[0, 0, :2, :2] = True
    for mask, expected in (
        (padded, keys),
        (pairs, blocks),
        (infinite, blocks),
        (lowest, blocks),
        (old, blocks),
        (pairs.int(), blocks),
    ):
        bias = attention_bias(config, hidden, mask)
        seen = bias if attention == "sdpa" else bias == 0
        assert bias.dtype == (torch.bool if attention == "sdpa" else dtype)
        assert bias.isfinite().all()
        assert torch.equal(seen, expected)
    assert attention_bias(config, hidden, None) is None
    with pytest.raises(ValueError, match="attention_mask"):
        attention_bias(config, hidden, pairs[:, 0])


@families
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("left", [False, True])
def test_padding_has_no_effect(family, attention, left):
    model, _, _ = build(family)
    model.set_attn_implementation(attention)
    ids = some_ids(3, 8)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, slice(0, 3) if left else slice(5, 8)] = False
    real[2] = False  # a row of padding alone would be a softmax over nothing
    edited = torch.where(real, ids, (ids + 17) % 60)
    assert not torch.equal(edited, ids)

    before, after = (model(input_ids=x, attention_mask=real.long()).logits for x in (ids, edited))
    assert torch.equal(before[real], after[real])
    assert before.isfinite().all()
    before.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@families
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("form", ["boolean", "additive"])
def test_packed_documents_stay_apart(family, attention, form):
    model, fields, state = build(family)
    model.set_attn_implementation(attention)
    ids = some_ids(1, 10)
    document = torch.tensor(
        [[0, 0, 0, 0, 1, 1, 1, 1, 1, -1]]
    )  # the last is padding: its row is empty
    pairs = (document[:, None, :, None] == document[:, None, None, :]) & (document >= 0)[
        :, None, None, :
    ]
    mask = (
        pairs
        if form == "boolean"
        else torch.zeros(1, 1, 10, 10).masked_fill(~pairs, torch.finfo(torch.float).min)
    )
    where = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0]])

    embedded = []
    model.get_input_embeddings().register_forward_hook(
        lambda *call: embedded.append(call[2]) or call[2].retain_grad()
    )
    out = model(input_ids=ids, attention_mask=mask, position_ids=where).logits
    edited = ids.clone()
    edited[0, :4] += 1
    other = model(input_ids=edited, attention_mask=mask, position_ids=where).logits
    assert torch.equal(out[0, 4:9], other[0, 4:9])
    assert not torch.equal(out[0, :4], other[0, :4])

    out[0, 4:9].square().sum().backward()
    gradient = embedded[0].grad[0]
    assert (gradient[:4] == 0).all()
    assert (gradient[9] == 0).all()
    assert (gradient[4:9].abs().sum(-1) > 0).all()

    for part in (slice(0, 4), slice(4, 9)):
        expected = reference.logits(state, fields, ids[:, part])
        torch.testing.assert_close(out[:, part].detach(), expected, atol=1e-5, rtol=0)


@families
def test_gathered_states_give_the_same_logits(family):
    model, _, _ = build(family)
    ids = some_ids(2, 7)
    full = model(input_ids=ids).logits
    shift = 1 if family == "Dream" else 0
    rows, columns = torch.tensor([0, 0, 1]), torch.tensor([2, 6, 1])
    gathered = model.head(model.encode(ids)[rows, columns - shift])  # [M, V]
    torch.testing.assert_close(gathered, full[rows, columns], atol=1e-6, rtol=0)


@families
def test_attention_is_full(family):
    """The first token's state depends on the last token, with and without a mask.

    Without a mask a causal default would show.
    """
    model, _, _ = build(family)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        ids = some_ids(1, 6)
        edited = ids.clone()
        edited[0, -1] += 1
        assert (model.encode(ids)[0, 0] - model.encode(edited)[0, 0]).abs().max() > 1e-3


@families
def test_gradient_checkpointing_changes_no_gradient(family):
    gradients = []
    for checkpointing in (False, True):
        model, _, _ = build(family)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model(input_ids=some_ids(1, 6)).logits.square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft reads it
@families
@pytest.mark.parametrize("tied", [False, True])
def test_lora_skips_the_head_and_merges_exactly(family, tied):
    """all-linear excludes the head, though LLaDA's blocks have an `ff_out` too.

    A new token's row changes a tied head.
    """
    model, _, _ = build(family, **{TYING[family]: tied})
    ids = some_ids(1, 5)
    ids[0, 2] = 63
    before = model(input_ids=ids).logits
    torch.manual_seed(0)  # peft draws from the global generator
    lora = peft.LoraConfig(
        r=2,
        lora_alpha=2,
        target_modules="all-linear",
        trainable_token_indices=[63],
        init_lora_weights=False,
    )
    adapted = peft.get_peft_model(model, lora).eval()
    targets = {
        name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name
    }
    assert len(targets) == 14
    assert not [name for name in targets if name.endswith(("transformer.ff_out", "lm_head"))]
    for name, parameter in adapted.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += 0.5
    with torch.no_grad():
        after = adapted(input_ids=ids).logits
        assert (after - before).abs().max() > 0.1
        merged = adapted.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(merged, after, atol=1e-5, rtol=0)
