"""Training from scratch in one process: eight answers, learned word for word with their ends."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import CLS, MASK, PAD, SEP, cpu, rules, steps_of, tiny_model, train_tiny

from plugin.config.sampler import SamplerSettings
from plugin.data.chat import ChatFormat
from plugin.data.formats import Example
from plugin.data.prepare import Encoding, encode_split
from plugin.data.tokenizer import train_tokenizer
from plugin.data.turns import Turn
from plugin.models.diffusion import Predictor
from plugin.sampling.generate import generate
from plugin.sampling.request import Request, Vocabulary

BLOCK = 8
QUESTIONS = (
    *("Are you a robot?", "Are you happy?", "Do you drink?", "Do you sleep?"),
    *("Tell me a joke.", "Who are you?", "What is the sun?", "How far is the sun?"),
)
SHORT = (
    "Yes, a small one.",
    "Always.",
    "Only electricity.",
    "No.",
    "You first.",
    "A small robot.",
    "A star.",
    "Eight minutes.",
)
LONG = (
    *("Yes, a small one.", "Always.", "My brain does not require any beverages.", "No."),
    *(
        "What do you get when you cross a joke with a question?",
        "I am a program that removes masks.",
        "A star.",
    ),
    "Eight minutes by light, and much longer by train.",
)


# Within one block, and over two: there the canvas of the first block must not show that the answer
# ends in it.
@pytest.mark.parametrize(
    ("replies", "most_blocks", "steps"), [(SHORT, 1, 350), (LONG, 2, 600)], ids=["short", "long"]
)
def test_eight_pairs_are_answered_word_for_word(
    replies: tuple[str, ...], most_blocks: int, steps: int
) -> None:
    """Each answer stops where the training answer does."""
    tokenizer = train_tokenizer([*QUESTIONS, *replies], 400)
    chat = ChatFormat(tokenizer)
    assert (chat.pad_id, chat.start_id, chat.end_ids, chat.fill_id, chat.mask_id) == (
        PAD,
        CLS,
        (SEP,),
        SEP,
        MASK,
    )
    pairs = enumerate(zip(QUESTIONS, replies, strict=True))
    rows = [
        Example(f"r:{n}", (Turn("user", ask), Turn("assistant", reply)))
        for n, (ask, reply) in pairs
    ]
    documents, _ = encode_split(rows, chat, Encoding(max_length=64))
    learned = [documents[index].ids.size - documents[index].prompt for index in range(8)]
    blocks = [-(-length // BLOCK) for length in learned]
    assert max(blocks) == most_blocks

    model = tiny_model(
        "modernbert",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        global_attn_every_n_layers=1,
        initializer_range=0.04,
        tie_word_embeddings=False,
    )
    run = train_tiny(
        cpu(),
        model,
        steps_of(documents, rules(eos_policy="block", eos_block=BLOCK), step_size=8, batch_size=8),
        steps=steps,
        optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98)),
        rates=lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps),
    )
    assert sum(run.losses[-20:]) < sum(run.losses[:20]) / 50

    prompts = [documents[index].ids[: documents[index].prompt] for index in range(8)]
    settings = SamplerSettings(max_new_tokens=4 * BLOCK, block_length=BLOCK, steps=BLOCK)
    answers = generate(
        Predictor(model.eval()),
        [Request(ids=one) for one in prompts],
        Vocabulary(MASK, chat.end_ids, PAD),
        settings,
    )
    assert [chat.decode(one.ids.tolist()) for one in answers] == list(replies)
    assert [one.ids.size for one in answers] == [BLOCK * count for count in blocks], (
        "a row stops with its answer's last block"
    )
    for one, length in zip(answers, learned, strict=True):
        assert (one.ids[length - 1 :] == SEP).all(), "and all behind the answer is the end token"
