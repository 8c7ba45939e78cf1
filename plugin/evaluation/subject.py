"""Model under evaluation: answers and log-likelihoods of requests, each kept once it is finished.

A result depends on the model, the settings and the request alone: the random draws of a request
are named by its content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from ..base.errors import JobError, Problem
from ..config.sampler import SamplerSettings
from ..data.chat import ChatFormat
from ..models.backbones import positions
from ..models.diffusion import DiffusionModel, Predictor
from ..run.facts import BlockFacts
from ..sampling.block_likelihood import block_likelihoods
from ..sampling.generate import stream
from ..sampling.likelihood import Likelihood, LikelihoodSettings, ScoreRequest, likelihoods
from ..sampling.request import Request, Vocabulary
from ..sampling.scores import ModelScores
from .kept import Kept, content_key

# Tokens of a likelihood's forward. The vocabulary's logits are computed in chunks, so that more
# tokens cost memory for hidden states alone.
TOKENS = {"cpu": 4096, "cuda": 32_768}
Ids = NDArray[np.int32]
Beat = Callable[[int], None]  # called with the number of requests just finished


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request for text, and the row that it belongs to."""

    row: str
    ids: Ids
    holes: NDArray[np.int64] | None = None  # as in sampling.request.Request
    max_new_tokens: int | None = None  # None: that of the sampler
    repeat: int = 0  # number of this answer among several to the same prompt


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Ids behind the prompt, end tokens included; of an infilling those of the holes."""

    ids: list[int]
    nfe: int


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A continuation to score, and the row that it belongs to."""

    row: str
    context: Ids  # may be empty
    continuation: Ids
    greedy: bool = False


class Subject:
    """A loaded model with its settings, and the answers that were kept of an earlier try."""

    def __init__(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        sampler: SamplerSettings,
        likelihood: LikelihoodSettings,
        *,
        attention: str | None,
        batch_size: int,
        digest: str,
        kept: Kept,
    ):
        """`attention`: of packed documents, as DiffusionModel takes it; `digest`: of the model."""
        self.model, self.chat, self.sampler = model, chat, sampler
        self._predict = Predictor(model)
        self._block: BlockFacts | None = None  # of a block model, by the sampler's block_length
        self.likelihood = likelihood
        if self._predict.causal:
            self.likelihood = replace(likelihood, estimator="next_token")
        elif self._predict.block:
            size = sampler.block_length
            self._block = self._predict.block.model_copy(update={"size": size})
            self.likelihood = replace(likelihood, block_length=size)
        self.positions = positions(model)
        self.nfe = 0  # of all requests, those of an earlier try included
        self.beat: Callable[[str, int], Beat] = lambda what, total: lambda done: None
        self._module = DiffusionModel(model, chat.pad_id, attention).eval()
        self._vocabulary = Vocabulary.of(chat)
        self._batch_size, self.digest, self._kept = batch_size, digest, kept

    # --- text

    def answers(self, asked: Sequence[Asked]) -> list[Reply]:
        """Answer all requests, in their order.

        Raises JobError (exit 2) naming every row that leaves no positions for an answer.
        """
        room = [self._room(one) for one in asked]
        self._refuse([one for one, left in zip(asked, room, strict=True) if left < 1])
        keys: list[str] = []
        for one, longest in zip(asked, room, strict=True):
            holes = None if one.holes is None else one.holes.tolist()
            settings = asdict(replace(self.sampler, max_new_tokens=longest))
            keys.append(
                content_key("text", self.digest, settings, one.ids.tolist(), holes, one.repeat)
            )
        requests = {
            key: (one, longest) for key, one, longest in zip(keys, asked, room, strict=True)
        }
        return [
            Reply(ids=value["ids"], nfe=value["nfe"])
            for value in self._each(keys, lambda missing: self._written(missing, requests))
        ]

    def _room(self, one: Asked) -> int:
        """Return the longest answer to a prompt; below 1 if there is none."""
        if one.holes is not None:
            return 1 + min(0, self.positions - one.ids.size)
        longest = one.max_new_tokens or self.sampler.max_new_tokens
        return min(longest, self.positions - one.ids.size)

    def _written(
        self, missing: Sequence[str], requests: dict[str, tuple[Asked, int]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        most = max((requests[key][1] for key in missing), default=1)
        found = stream(
            self._predict,
            (_request(*requests[key]) for key in missing),
            self._vocabulary,
            replace(self.sampler, max_new_tokens=most),
            self._batch_size,
        )
        for number, sample in found:
            holes = requests[missing[number]][0].holes
            ids = sample.ids if holes is None else sample.ids[holes]
            yield missing[number], {"ids": ids.tolist(), "nfe": sample.nfe}

    # --- likelihood

    def scores(self, texts: Sequence[Continuation]) -> list[Likelihood]:
        """Return the log-likelihoods of all texts, in their order.

        An empty context becomes the token that opens a text. A tokenizer without one leaves the
        first token of the continuation unscored, for no family predicts it. Raises JobError (exit
        2) naming every row that is longer than the model's positions.
        """
        requests = [self._scored(one) for one in texts]
        pairs = list(zip(texts, requests, strict=True))
        self._refuse([one for one, made in pairs if made and made.tokens > self.positions])
        keys = [
            content_key(
                *("likelihood", self.digest, asdict(self.likelihood), one.greedy),
                *(one.context.tolist(), one.continuation.tolist()),
            )
            for one in texts
        ]
        by_key = dict(zip(keys, requests, strict=True))
        return [
            Likelihood(**value)
            for value in self._each(keys, lambda missing: self._estimated(missing, by_key))
        ]

    def _scored(self, text: Continuation) -> ScoreRequest | None:
        """Return the request of a text; None if nothing of it can be scored."""
        context, continuation = text.context, text.continuation
        if not context.size and self.chat.start_id is not None:
            context = np.array([self.chat.start_id], np.int32)
        elif not context.size:
            context, continuation = continuation[:1], continuation[1:]
        if not (context.size and continuation.size):
            return None
        name = content_key(context.tolist(), continuation.tolist())
        return ScoreRequest(
            context=context,
            continuation=continuation,
            draw=(int(name[:8], 16), int(name[8:16], 16)),
            greedy=text.greedy,
        )

    def _estimated(
        self, missing: Sequence[str], requests: dict[str, ScoreRequest | None]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        scored: list[str] = []
        for key in missing:
            if requests[key] is None:
                yield key, asdict(Likelihood(value=0.0, stderr=0.0, tokens=0, nfe=0, greedy=True))
            else:
                scored.append(key)
        # Those of one length share forwards without padding, and the longest come first: memory
        # that suffices for them suffices for all.
        scored.sort(key=lambda key: -(requests[key].tokens if requests[key] else 0))  # pyright: ignore[reportOptionalMemberAccess]
        mask_id, settings = self.chat.mask_id, self.likelihood
        score = ModelScores(self._module, settings, mask_id)
        tokens = TOKENS.get(self.model.device.type, TOKENS["cuda"])
        chosen = [request for key in scored if (request := requests[key])]
        estimates = (
            block_likelihoods(score, chosen, settings, self._block, mask_id, tokens=tokens)
            if self._block
            else likelihoods(score, chosen, settings, mask_id, tokens=tokens)
        )
        for number, found in estimates:
            yield scored[number], asdict(found)

    # --- both

    def _each(
        self,
        keys: Sequence[str],
        compute: Callable[[Sequence[str]], Iterable[tuple[str, dict[str, Any]]]],
    ) -> list[dict[str, Any]]:
        """Return the value of each key, computed unless it was kept, and keep it."""
        found = {key: value for key in keys if (value := self._kept.get(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        beat = self.beat("requests", len(found) + len(missing))
        beat(len(found))
        for key, value in compute(missing):
            found[key] = value
            self._kept.put(key, value)
            beat(1)
        self.nfe += sum(value["nfe"] for value in found.values())
        return [found[key] for key in keys]

    def measured(self, name: str, settings: object, compute: Callable[[], dict[str, Any]]) -> Any:
        """Return a measurement with its `nfe`, computed unless an earlier try kept it."""
        key = content_key(name, self.digest, settings)
        (value,) = self._each([key], lambda missing: [(key, compute())] if missing else [])
        return value

    @property
    def infills(self) -> bool:
        """Return False for a model that sees no text behind a hole's block."""
        return self._block is None

    @property
    def module(self) -> DiffusionModel:
        """Return the model with its masked-only head."""
        return self._module

    def _refuse(self, long: Sequence[Asked | Continuation]) -> None:
        if not long:
            return
        names = list(dict.fromkeys(one.row for one in long))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        expected = f"prompts with their answers within the model's {self.positions} positions"
        raise JobError(
            Problem(
                "tasks",
                expected,
                f"longer ones: {', '.join(names[:3])}{more}",
                "Lower num_fewshot, or leave these rows out.",
            )
        )


def _request(one: Asked, longest: int) -> Request:
    name = content_key(one.ids.tolist())
    draw = int(name[:8], 16), int(name[8:16], 16), one.repeat
    prompt = None if one.holes is None else 0
    return Request(ids=one.ids, holes=one.holes, prompt=prompt, longest=longest, draw=draw)
