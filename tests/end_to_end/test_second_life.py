"""Second use of a result: by transformers without the plugin, as a base, with its prompt layout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.forks import Forks
from helpers.published_checkpoints import write_checkpoint
from helpers.support import TINY_CONFIG, child_env, patience, run_main
from helpers.tiny import tiny_config
from safetensors.torch import load_file

from plugin.config.families import FAMILIES
from plugin.data.chat import ChatFormat
from plugin.data.turns import Turn
from plugin.models.code_files import write_code_files
from plugin.models.diffusion import logits_of
from plugin.models.load import load_model
from plugin.models.tokenizer import load_tokenizer

METHODS = {"bert": "modernbert", "llada": "llada", "dream": "Dream"}
PROMPT = "What colour is the sky?"

# A stranger's program: plain transformers in an empty folder, allowed to run the published code.
STRANGER = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
folder, code, out = sys.argv[1:]
try:
    import plugin
except ImportError:
    pass
else:
    sys.exit("the plugin can be seen from here")
kind = AutoModel if code == "code" else AutoModelForMaskedLM
model = kind.from_pretrained(folder, trust_remote_code=code == "code").eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=code == "code")
message = [{"role": "user", "content": "What colour is the sky?"}]
ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False, return_tensors="pt")
with torch.no_grad():
    logits = model(input_ids=ids).logits
    padded = model(input_ids=torch.cat([ids, ids], 1), attention_mask=torch.tensor([[1] * ids.shape[1] + [0] * ids.shape[1]])).logits
save_file({"ids": ids, "logits": logits, "padded": padded[:, : ids.shape[1]].contiguous()}, out)
"""


def scratch_config(method: str, folder: Path) -> Path:
    """Write a config.json of two narrow layers to train from scratch."""
    fields: dict[str, Any] = TINY_CONFIG
    if method != "bert":
        config = tiny_config(METHODS[method], vocab_size=300, max_position_embeddings=128)
        fields = {key: value for key, value in config.to_dict().items() if key != "rope_scaling"}
        fields |= {"embedding_size": 300} if method == "llada" else {}
    path = folder / f"config-{method}.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def fused(
    forks: Forks, tmp_path_factory: pytest.TempPathFactory, pairs_file: Path
) -> dict[str, Path]:
    """Return the run folder of a short training from scratch, for each method."""
    folder = tmp_path_factory.mktemp("from scratch")  # a path with a space
    found: dict[str, Path] = {}
    for method in METHODS:
        config = scratch_config(method, folder)
        words = (
            "--model_config",
            config,
            "--training_method",
            method,
            "--dataset_name",
            pairs_file,
        )
        scene = forks.run(
            folder / method, *words, "--max_length", 64, "--train_steps", 4, "--eval_strategy", "no"
        )
        assert scene.code == 0, scene.err
        found[method] = scene.folder
    return found


def by_a_stranger(model: Path, scratch: Path, *, code: bool) -> dict[str, torch.Tensor]:
    """Return the tensors that a process without the plugin computes.

    HF_MODULES_CACHE holds the copies of code that transformers makes.
    """
    program, out = scratch / "stranger.py", scratch / "out.safetensors"
    program.write_text(STRANGER, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program), str(model), "code" if code else "none", str(out)],
        cwd=scratch,
        env=child_env({"HF_MODULES_CACHE": str(scratch / "modules")}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return load_file(out)


@pytest.mark.parametrize("method", METHODS)
def test_fused_loads_without_plugin_and_agrees(
    method: str, fused: dict[str, Path], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(fused[method] / "fused", tmp_path / "moved"))
    got = by_a_stranger(moved, tmp_path, code=method != "bert")
    ours = load_model(str(moved))
    torch.testing.assert_close(got["logits"], logits_of(ours, got["ids"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got["padded"], got["logits"], rtol=1e-4, atol=1e-5)
    trained_with = ChatFormat(load_tokenizer(str(fused[method] / "data" / "tokenizer"))).prompt(
        [Turn("user", PROMPT)]
    )
    assert got["ids"][0].tolist() == trained_with.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_published_files_name_no_place(
    method: str, fused: dict[str, Path], forks: Forks, tmp_path: Path, pairs_file: Path
) -> None:
    """Name no path of this machine and no loading switches; in adapters and checkpoints too."""
    words = (
        "--model_name",
        fused[method] / "fused",
        "--training_method",
        method,
        "--dataset_name",
        pairs_file,
    )
    options = (
        "--max_length",
        64,
        "--train_steps",
        2,
        "--lora",
        "true",
        "--dtype",
        "bfloat16",
        "--eval_strategy",
        "no",
    )
    scene = forks.run(tmp_path / "again", *words, *options)
    assert scene.code == 0, scene.err
    folders = [fused[method] / "fused", fused[method] / "checkpoint-4"]
    folders += [scene.folder / name for name in ("fused", "adapter", "checkpoint-2")]
    seen = 0
    for file in (
        file
        for folder in folders
        for file in folder.iterdir()
        if file.suffix in (".json", ".md", ".jinja")
    ):
        text = file.read_text(encoding="utf-8")
        for word in (
            str(tmp_path),
            str(fused[method].parent),
            str(Path.home()),
            "local_files_only",
            "plugin.models",
        ):
            assert word not in text, (file.parent.name, file.name, word)
        seen += 1
    assert seen > 20


@pytest.mark.parametrize("method", METHODS)
def test_second_life_keeps_prompt_layout(
    method: str, fused: dict[str, Path], forks: Forks, tmp_path: Path, pairs_file: Path
) -> None:
    """A LoRA of a model from scratch keeps that model's layout: no published template is used."""
    words = (
        "--model_name",
        fused[method] / "fused",
        "--training_method",
        method,
        "--dataset_name",
        pairs_file,
    )
    scene = forks.run(
        tmp_path / "on",
        *words,
        "--max_length",
        64,
        "--train_steps",
        2,
        "--lora",
        "true",
        "--eval_strategy",
        "no",
    )
    assert scene.code == 0, scene.err
    family = FAMILIES[METHODS[method]]
    folders = [
        *(fused[method] / name for name in ("data/tokenizer", "fused", "checkpoint-4")),
        *(scene.folder / name for name in ("data/tokenizer", "fused", "adapter")),
    ]
    asked = [
        ChatFormat(load_tokenizer(str(folder), family=family))
        .prompt([Turn("user", PROMPT)])
        .tolist()
        for folder in folders
    ]
    first = ChatFormat(load_tokenizer(str(folders[0])))
    assert asked[0][0] == first.tokenizer.cls_token_id
    assert asked[0][-1] == first.tokenizer.sep_token_id
    assert all(one == asked[0] for one in asked)


def test_chat_and_fuse_take_a_second_life(
    fused: dict[str, Path], forks: Forks, tmp_path: Path, pairs_file: Path
) -> None:
    """A LoRA of a LLaDA from scratch in bfloat16; `fuse` as a user starts it."""
    base = fused["llada"] / "fused"
    words = ("--model_name", base, "--training_method", "llada", "--dataset_name", pairs_file)
    options = ("--lora", "true", "--dtype", "bfloat16", "--max_length", 64, "--train_steps", 2)
    scene = forks.run(tmp_path / "run", *words, *options)
    assert scene.code == 0, scene.err
    done = forks.main("chat", scene.folder / "adapter", "--prompt", PROMPT, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] > 0
    words = ("--adapter", scene.folder, "--model_name", base, "--out", tmp_path / "merged")
    done = run_main("fuse", *words, "--json", timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chat_template_as_trained"] is True


def test_base_code_is_copied_and_never_run(tmp_path: Path) -> None:
    """Copy a base's own files with those that they import; never run one, which writes a sentinel."""
    base = write_checkpoint(tmp_path / "base", "llada", ["how are you", "fine, thanks"])
    fields = json.loads((base / "config.json").read_text())
    fields["auto_map"] = {"AutoConfig": "theirs.LLaDAConfig", "AutoModel": "theirs.LLaDAModelLM"}
    (base / "config.json").write_text(json.dumps(fields))
    (base / "theirs.py").write_text(
        f"from .helper import x\nopen({str(tmp_path / 'sentinel')!r}, 'w')\n"
    )
    (base / "helper.py").write_text("x = 1\n")
    model = load_model(str(base))
    model.save_pretrained(tmp_path / "made")
    write_code_files(tmp_path / "made", base)
    assert sorted(file.name for file in (tmp_path / "made").glob("*.py")) == [
        "helper.py",
        "theirs.py",
    ]
    assert (
        json.loads((tmp_path / "made" / "config.json").read_text())["auto_map"]
        == fields["auto_map"]
    )
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoModel": "absent.LLaDAModelLM"},
        {"AutoModel": "../outside.LLaDAModelLM"},
        {"AutoModel": "org/name--modeling.LLaDAModelLM"},
        {"AutoModel": ["theirs.A", None]},
        "theirs",
    ],
)
def test_code_that_is_not_there_is_replaced_by_ours(auto_map: Any, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", "llada", ["how are you", "fine, thanks"])
    (tmp_path / "outside.py").write_text("")
    load_model(str(base)).save_pretrained(tmp_path / "made")
    config = tmp_path / "made" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": auto_map}))
    write_code_files(tmp_path / "made", base)
    assert json.loads(config.read_text())["auto_map"]["AutoModel"] == "modeling_llada.LLaDAModelLM"
    assert sorted(file.name for file in (tmp_path / "made").glob("*.py")) == [
        "masks.py",
        "modeling_llada.py",
        "rotary.py",
    ]


def test_llada_text_opens_with_bos_though_it_has_a_cls(tmp_path: Path) -> None:
    """LLaDA's tokenizer names a [CLS] that nothing writes; an encoder writes it before every text."""
    folder = write_checkpoint(tmp_path / "llada", "llada", ["how are you", "fine, thanks"])
    tokenizer = load_tokenizer(str(folder), family=FAMILIES["llada"])
    tokenizer.add_special_tokens({"cls_token": "[CLS]"})
    assert tokenizer.cls_token_id != tokenizer.bos_token_id
    (text,) = ChatFormat(tokenizer).encode([[Turn("text", "how are you")]])
    assert text.ids[0] == tokenizer.bos_token_id
