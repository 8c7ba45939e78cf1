"""Samples while training: the same few prompts each time, answered by the model as it stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..data.chat import ChatFormat
from ..data.documents import Documents
from ..models.diffusion import Predict, positions, predictor
from ..run.facts import SamplerSettings
from ..sampling.blockwise import Vocabulary, generate

PROMPTS = 4
FRAMES = 8  # canvas states kept of each answer
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
        """`predict`: for a sharded model, which its own `predictor` cannot run."""
        self._model, self._chat = model, chat
        self._predict = predict or predictor(model)
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
        self._settings = replace(sampler, max_new_tokens=min(longest, room))
        self._vocabulary = Vocabulary(chat.mask_id, chat.end_ids, chat.pad_id)

    def samples(self) -> list[dict[str, Any]]:
        """Return {prompt, expected, text, frames} of each watched prompt."""
        prompts = [one.ids[: one.prompt] for one in self._documents]
        canvases: list[list[NDArray[np.int32]]] = []
        was_training = self._model.training
        self._model.eval()
        answers = generate(
            self._predict, prompts, self._vocabulary, self._settings, canvases.append
        )
        self._model.train(was_training)
        records = []
        for row, (one, prompt, answer) in enumerate(
            zip(self._documents, prompts, answers, strict=True)
        ):
            states = [canvas[row][prompt.size :] for canvas in canvases[: answer.steps]]
            shown = [
                states[place]
                for place in dict.fromkeys(
                    np.linspace(0, len(states) - 1, min(FRAMES, len(states))).astype(int)
                )
            ]
            records.append(
                {
                    "prompt": self._chat.text(prompt.tolist()).strip(),
                    "expected": self._chat.decode(one.ids[one.prompt :].tolist()),
                    "text": self._chat.decode(answer.ids.tolist()),
                    "frames": [self._chat.frame(state.tolist()) for state in shown],
                }
            )
        return records
