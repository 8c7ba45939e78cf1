"""Classification probe: a linear head on frozen features, or all weights fine-tuned.

S texts, D width, C classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import data_error
from .features import Encoder
from .rows import ProbePairs

Z = 1.959963984540054  # of a 95 % interval
Predict = Callable[[Sequence[str]], Tensor]  # texts -> class numbers [S]


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """Settings of a fine-tuned probe."""

    epochs: int
    learning_rate: float
    batch_size: int = 16
    seed: int


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927): right near 0 and 1 too."""
    share, spread = correct / total, Z * Z / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return low if correct else 0.0, high if correct < total else 1.0  # without dust of rounding


def share_of(correct: int, total: int) -> dict[str, Any]:
    """Return a share with its interval, as a probe reports it."""
    return {"accuracy": correct / total, "ci95": list(wilson(correct, total))}


def classes_of(examples: ProbePairs) -> list[str]:
    """Return the labels to fit on, sorted. Raises JobError (exit 3) for fewer than two."""
    classes = sorted({label for _, label in examples.train})
    if len(classes) < 2:
        raise data_error(
            "label_field", "two labels or more", f"{len(classes)}: {classes[0]!r}"[:80]
        )
    return classes


def majority(examples: ProbePairs) -> float:
    """Return the accuracy of always answering the most frequent label of the rows to fit on."""
    ((label, _),) = Counter(label for _, label in examples.train).most_common(1)
    return sum(one == label for _, one in examples.held_out) / len(examples.held_out)


def classify(
    encoder: Encoder, examples: ProbePairs, finetuning: Finetuning | None
) -> dict[str, Any]:
    """Fit on the rows for it, and return the accuracy over the held-out ones.

    A held-out label that no row to fit on has counts as wrong.
    """
    classes = classes_of(examples)
    number = {label: place for place, label in enumerate(classes)}
    texts = [text for text, _ in examples.train]
    labels = torch.tensor([number[label] for _, label in examples.train])
    fit = (
        _finetuned(encoder, texts, labels, len(classes), finetuning)
        if finetuning
        else _frozen(encoder, texts, labels, len(classes))
    )
    predicted = fit([text for text, _ in examples.held_out]).tolist()
    right = sum(
        one == number.get(label)
        for one, (_, label) in zip(predicted, examples.held_out, strict=True)
    )
    return share_of(right, len(predicted))


def _frozen(encoder: Encoder, texts: Sequence[str], labels: Tensor, classes: int) -> Predict:
    features = encoder.features(texts)
    head = fit_head(features, labels, classes)
    return lambda others: head(encoder.features(others)).argmax(-1)


def fit_head(features: Tensor, labels: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Return logistic regression from features [S, D] to logits [S, C].

    Features are standardised by the rows to fit on. The penalty is |W|^2 / 2 against the summed
    loss, as scikit-learn's default. The problem is convex and begins at 0: nothing is drawn.
    """
    mean, deviation = features.mean(0).double(), features.std(0, correction=0).double()
    scale = deviation.clamp(min=1e-6)
    rows = (features.double() - mean) / scale
    weight = torch.zeros(classes, rows.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.double, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        solver.zero_grad()
        penalty = weight.square().sum() / (2 * rows.shape[0])
        value = F.cross_entropy(rows @ weight.T + bias, labels) + penalty
        value.backward()
        return value.item()

    solver.step(loss)
    w, b = weight.detach(), bias.detach()
    return lambda others: (others.double() - mean) / scale @ w.T + b


def _finetuned(
    encoder: Encoder, texts: Sequence[str], labels: Tensor, classes: int, how: Finetuning
) -> Predict:
    """Train all weights of the encoder and a linear head, in place."""
    width = encoder.pooled([texts[0]]).shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        head = nn.Linear(width, classes).to(encoder.device)
        weights = [*encoder.model.parameters(), *head.parameters()]
        adam = torch.optim.AdamW(weights, lr=how.learning_rate, weight_decay=0.01)
        steps = how.epochs * math.ceil(len(texts) / how.batch_size)
        falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        encoder.model.train()
        for _ in range(how.epochs):
            for places in torch.randperm(len(texts)).split(how.batch_size):
                chosen: list[int] = places.tolist()
                logits = head(encoder.pooled([texts[place] for place in chosen]))
                adam.zero_grad()
                F.cross_entropy(logits, labels[places].to(encoder.device)).backward()
                nn.utils.clip_grad_norm_(weights, 1.0)
                adam.step()
                falling.step()
    head = head.cpu()

    def predict(others: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return head(encoder.features(others)).argmax(-1)

    return predict
