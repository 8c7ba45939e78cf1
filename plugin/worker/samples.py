"""Samples while training: the same few prompts each time, answered by the model as it stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..config.sampler import SamplerSettings
from ..data.chat import ChatFormat
from ..data.documents import Documents
from ..models.backbones import positions
from ..models.diffusion import Predict, Predictor
from ..sampling.generate import generate
from ..sampling.request import DenoisingStep, Request, Vocabulary, merged
from ..sampling.trace import Taken, records

PROMPTS = 4
FRAMES = 32  # steps kept of each answer
SHORTEST = 16  # tokens watched of an answer whose block is one token, as a causal model's


class SampleWatch:
    """Fixed prompts, spread over at least one document, and the settings that answer them."""

    def __init__(
        self,
        model: nn.Module,
        chat: ChatFormat,
        documents: Documents,
        sampler: SamplerSettings,
        predict: Predict | None = None,
    ):
        """`predict`: for a sharded model, which its own `Predictor` cannot run."""
        self._model, self._chat = model, chat
        self._predict = predict or Predictor(model)
        two = 2 * sampler.block_length if sampler.block_length > 1 else SHORTEST
        longest = min(sampler.max_new_tokens, two)
        # An answer must end within the model's positions: prompts that leave room for a full one,
        # else the shortest alone.
        limit = positions(model)
        roomy = np.flatnonzero(documents.prompts + longest <= limit)
        chosen = roomy if roomy.size else np.array([documents.prompts.argmin()])
        places = np.linspace(0, chosen.size - 1, min(PROMPTS, chosen.size)).astype(int)
        self._documents = [documents[int(chosen[place])] for place in dict.fromkeys(places)]
        room = max(1, limit - max(one.prompt for one in self._documents))
        # An exact cache changes no answer. Without it, layers run as in evaluations: compiled ones
        # would be compiled again, and a sharded model's `predict` has none.
        cache = "none" if sampler.cache == "exact" else sampler.cache
        self._settings = replace(sampler, max_new_tokens=min(longest, room), cache=cache)
        self._vocabulary = Vocabulary.of(chat)

    def samples(self) -> list[dict[str, Any]]:
        """Return {prompt, expected, text, nfe, trace} of each watched prompt.

        `trace` has at most FRAMES steps, neighbours merged: they replay the answer.
        """
        prompts = [one.ids[: one.prompt] for one in self._documents]
        requests = [Request(ids=ids, draw=(row,)) for row, ids in enumerate(prompts)]
        taken: list[list[Taken]] = [[] for _ in requests]

        def keep(row: int, step: DenoisingStep, answer: NDArray[np.int32]) -> None:
            taken[row].append((step, answer))

        was_training = self._model.training
        self._model.eval()
        answers = generate(self._predict, requests, self._vocabulary, self._settings, keep)
        self._model.train(was_training)
        return [
            {
                "prompt": self._chat.text(prompt.tolist()).strip(),
                "expected": self._chat.decode(one.ids[one.prompt :].tolist()),
                "text": self._chat.decode(answer.ids.tolist()),
                "nfe": answer.nfe,
                "trace": list(records(merged(steps, FRAMES), self._chat)),
            }
            for one, prompt, answer, steps in zip(
                self._documents, prompts, answers, taken, strict=True
            )
        ]
