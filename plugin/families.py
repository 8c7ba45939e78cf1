"""Facts per model family, by `model_type`. Which head, which mask token, which end of turn, whether logits are shifted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    name: str  # transformers' model_type
    architecture: str  # the class in config.json
    method: str  # the training_method it belongs to
    shift: bool = False  # hidden state i-1 predicts token i
    max_positions: bool = True  # whether max_position_embeddings is a hard limit (learned positions)
    position_offset: int = 0  # positions that the table reserves before the first token


FAMILIES = {
    family.name: family
    for family in (
        Family("bert", "BertForMaskedLM", "bert"),
        # RoBERTa numbers positions from pad_token_id + 1 = 2, so two rows of its table are never a token's.
        Family("roberta", "RobertaForMaskedLM", "bert", position_offset=2),
        Family("modernbert", "ModernBertForMaskedLM", "bert", max_positions=False),
    )
}
ARCHITECTURES = tuple(family.architecture for family in FAMILIES.values())

# Loss norm that each method's authors use; `loss_norm: auto` reads it.
DEFAULT_NORM = {"bert": "token", "llada": "sequence", "dream": "masked"}
