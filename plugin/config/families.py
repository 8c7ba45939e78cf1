"""Model families by `model_type`: architecture, output head, logit shift, mask token, chat format.

The methods that train a family are in methods.py.
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


@dataclass(frozen=True, kw_only=True)
class Family:
    name: str  # model_type in config.json
    architecture: str  # the class in config.json
    head: tuple[str, ...]  # modules of the output head: never given an adapter, never quantised
    shift: int = 0  # hidden state i - shift predicts token i
    mask_token: str = ""  # of a published tokenizer that does not name it
    # of a published tokenizer that has none; empty: [CLS] turn [SEP] turn [SEP]
    chat_template: str = ""
    max_positions: bool = False  # max_position_embeddings is a hard limit (learned positions)
    position_offset: int = 0  # positions that the table reserves before the first token
    # transformers' own causal LM, which a method may give another attention: models/decoders/
    decoder: bool = False


FAMILIES = {
    family.name: family
    for family in (
        Family(name="bert", architecture="BertForMaskedLM", head=("cls",), max_positions=True),
        Family(
            name="roberta",
            architecture="RobertaForMaskedLM",
            head=("lm_head",),
            max_positions=True,
            # RoBERTa numbers positions from pad_token_id + 1 = 2, so the first two rows of its
            # table belong to no token.
            position_offset=2,
        ),
        Family(name="modernbert", architecture="ModernBertForMaskedLM", head=("head", "decoder")),
        Family(
            name="llada",
            architecture="LLaDAModelLM",
            head=("model.transformer.ff_out",),
            mask_token="<|mdm_mask|>",
            chat_template=_LLADA_CHAT,
        ),
        Family(
            name="Dream",
            architecture="DreamModel",
            head=("lm_head",),
            shift=1,
            mask_token="<|mask|>",
            chat_template=_CHATML,
        ),
        *(
            Family(name=name, architecture=architecture, head=("lm_head",), decoder=True)
            for name, architecture in (
                ("qwen3", "Qwen3ForCausalLM"),
                ("qwen2", "Qwen2ForCausalLM"),
                ("llama", "LlamaForCausalLM"),
                ("sdar", "SDARForCausalLM"),
            )
        ),
    )
}
DECODERS = tuple(family.name for family in FAMILIES.values() if family.decoder)
# The family whose layers are those of the published sizes: gated, full heads, no biases.
SIZED_FAMILY = "llada"
ARCHITECTURES = tuple(family.architecture for family in FAMILIES.values())
