"""Facts per model family, by `model_type`: its method, mask token, logit shift, chat format, where
its head is.
"""

from __future__ import annotations

from dataclasses import dataclass

# Used only when a published tokenizer carries no template of its own.
_LLADA_CHAT = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_CHATML = (
    "{% for message in messages %}{% if loop.first and bos_token %}{{ bos_token }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    name: str  # model_type in config.json
    architecture: str  # the class in config.json
    method: str  # the training_method it belongs to
    head: tuple[str, ...]  # modules of the output head: never given an adapter, never quantised
    shift: int = 0  # hidden state i - shift predicts token i
    mask_token: str = ""  # of a published tokenizer that does not name it
    chat_template: str = (
        ""  # of a published tokenizer that has none; empty: [CLS] turn [SEP] turn [SEP]
    )
    max_positions: bool = False  # max_position_embeddings is a hard limit (learned positions)
    position_offset: int = 0  # positions that the table reserves before the first token


FAMILIES = {
    family.name: family
    for family in (
        Family("bert", "BertForMaskedLM", "bert", ("cls",), max_positions=True),
        # RoBERTa numbers positions from pad_token_id + 1 = 2, so two rows of its table are never a
        # token's.
        Family(
            "roberta",
            "RobertaForMaskedLM",
            "bert",
            ("lm_head",),
            max_positions=True,
            position_offset=2,
        ),
        Family("modernbert", "ModernBertForMaskedLM", "bert", ("head", "decoder")),
        Family(
            "llada",
            "LLaDAModelLM",
            "llada",
            ("model.transformer.ff_out",),
            0,
            "<|mdm_mask|>",
            _LLADA_CHAT,
        ),
        Family("Dream", "DreamModel", "dream", ("lm_head",), 1, "<|mask|>", _CHATML),
    )
}
ARCHITECTURES = tuple(family.architecture for family in FAMILIES.values())

# Loss norm that each method's authors use; `loss_norm: auto` reads it.
DEFAULT_NORM = {"bert": "token", "llada": "sequence", "dream": "masked"}


def pipeline_tag(method: str) -> str:
    """The task by which hubs and hosts list a model of this method."""
    return "fill-mask" if method == "bert" else "text-generation"
