"""End to end in one process: a model from scratch learns eight answers, word for word, and where each of them stops."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from tiny import CLS, MASK, PAD, SEP, rules, steps_of, tiny_model, train_tiny

from plugin.data.chat import ChatFormat
from plugin.data.layouts import Example, Turn
from plugin.data.prepare import Encoding, encode_split
from plugin.data.tokenizer import train_tokenizer
from plugin.models.diffusion import predictor
from plugin.sampling.blockwise import SamplerSettings, Vocabulary, generate

BLOCK = 8
PAIRS = {
    "Are you a robot?": "Yes, a small one.",
    "Are you happy?": "Always.",
    "Do you drink?": "My brain does not require any beverages.",
    "Do you sleep?": "No.",
    "Tell me a joke.": "What do you get when you cross a joke with a question?",
    "Who are you?": "I am a program that removes masks.",
    "What is the sun?": "A star.",
    "How far is the sun?": "Eight minutes by light, and much longer by train.",
}


def test_eight_pairs_come_back_word_for_word_and_stop_where_they_should() -> None:
    tokenizer = train_tokenizer([*PAIRS, *PAIRS.values()], 400)
    chat = ChatFormat(tokenizer)
    assert (chat.pad_id, chat.start_id, chat.end_id, chat.mask_id) == (PAD, CLS, SEP, MASK)
    rows = [(f"r:{n}", Example(f"r:{n}", (Turn("user", q), Turn("assistant", a)))) for n, (q, a) in enumerate(PAIRS.items())]
    documents, _ = encode_split(rows, chat, Encoding(max_length=64))
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
    steps = STEPS
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.98))
    run = train_tiny(
        Accelerator(cpu=True),
        model,
        steps_of(documents, rules(eos_policy="block", eos_block=BLOCK), step_size=8, batch_size=8),
        steps=steps,
        optimizer=optimizer,
        rates=lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps),
    )
    import numpy as np
    print([round(float(np.mean(run.losses[i:i+20])),3) for i in range(0,steps,20)], documents.lengths, len(tokenizer))
    prompts = [documents[index].ids[: documents[index].prompt] for index in range(8)]
    settings = SamplerSettings(max_new_tokens=4 * BLOCK, block_length=BLOCK, steps=BLOCK)
    answers = generate(predictor(model.eval()), prompts, Vocabulary(MASK, SEP, PAD), settings)
    assert [chat.decode(one.ids.tolist()) for one in answers] == list(PAIRS.values())
    for one, index in zip(answers, range(8), strict=True):
        length = documents[index].ids.size - documents[index].prompt
        assert one.ids.size == -(-length // BLOCK) * BLOCK, "a row stops with the block its answer ends in"
        assert (one.ids[length - 1 :] == SEP).all()
