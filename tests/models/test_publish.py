"""Names in a published folder: those that mean something elsewhere, and no paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from plugin.models.publish import public_name, write_adapter_card, write_card
from plugin.run.facts import AdapterBase, ModelFacts


def front_matter(card: Path) -> dict[str, object]:
    return yaml.safe_load(card.read_text(encoding="utf-8").split("---")[1])


def test_public_name_keeps_hub_ids_and_shortens_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "fused").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("GSAI-ML/LLaDA-8B-Base") == "GSAI-ML/LLaDA-8B-Base"
    assert public_name(str(tmp_path / "mine" / "fused")) == "mine/fused"
    assert public_name("mine/fused") == "mine/fused"
    assert public_name(str(tmp_path / "mine" / "checkpoint-40")) == "mine/checkpoint-40"
    assert public_name(str(tmp_path / "models" / "bert: base")) == "bert: base"
    assert public_name("~/models/bert") == "bert"
    assert public_name(".") == tmp_path.name


@pytest.mark.parametrize(
    ("base", "known"),
    [
        ("org/name", True),
        ("mine/fused", False),
        ("mine/checkpoint-40", False),
        ("bert: base", False),
        ("", False),
    ],
)
def test_card_names_a_base_by_hub_ids_alone(base: str, known: bool, tmp_path: Path) -> None:
    """A hub reads `base_model` as an id; any other name would be a YAML error or a broken link."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    facts = {"name": "x", "method": "bert", "table": {"base model": base}, "metrics": {}}
    write_card(tmp_path, facts)
    card = front_matter(tmp_path / "README.md")
    assert (card.get("base_model") == base) == known
    assert (card["library_name"], card["pipeline_tag"]) == ("transformers", "fill-mask")
    write_adapter_card(
        tmp_path, ModelFacts(method="dream", base=AdapterBase(name=base, four_bit=True))
    )
    card = front_matter(tmp_path / "README.md")
    assert (card.get("base_model") == base) == known
    assert (card["library_name"], card["pipeline_tag"]) == ("peft", "text-generation")


def test_cards_of_the_baseline_call_it_no_diffusion_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llada"}))
    write_card(tmp_path, {"name": "x", "method": "causal", "table": {}, "metrics": {}})
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "A causal language model, trained by next-token prediction (method `causal`)." in text
    assert "diffusion" not in text
    write_adapter_card(tmp_path, ModelFacts(method="causal", base=AdapterBase(name="org/name")))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Trained by next-token prediction (method `causal`) on `org/name`." in text
    assert front_matter(tmp_path / "README.md")["tags"] == ["lora"]


@pytest.mark.parametrize("code", [True, False])
def test_card_says_how_another_program_loads_the_model(code: bool, tmp_path: Path) -> None:
    auto_map = {"auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}} if code else {}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llada", **auto_map}))
    write_card(tmp_path, {"name": "x", "method": "llada", "table": {}, "metrics": {}})
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ("trust_remote_code=True" in text) == code
    assert ("`modeling_llada.py`" in text) == code
