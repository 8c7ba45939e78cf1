"""Compiled layers in tests, and the counters of torch's compiler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch._dynamo.utils import counters
from transformers import AttentionInterface

from plugin.models.attention import NAME, document_attention
from plugin.models.backbones import unwrapped
from plugin.models.diffusion import DiffusionModel
from plugin.training.compile import compile_layers

# Its tracer reads every input's .grad and makes an instance of an autograd function; torch warns.
quiet_compiler = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:.*Function.* should not be instantiated",
)


@pytest.fixture
def compiler() -> Iterator[None]:
    """Lend torch's compiler in its initial state, and leave no trace of it for other tests."""
    import torch._dynamo as dynamo
    import torch._dynamo.config

    before = torch._dynamo.config.suppress_errors
    dynamo.reset()
    counters.clear()
    yield
    dynamo.reset()
    counters.clear()
    torch._dynamo.config.suppress_errors = before
    AttentionInterface.register(NAME, document_attention)


def compiled(module: DiffusionModel) -> DiffusionModel:
    """Compile the layers in place: forward and backward graphs as on a GPU, without code of inductor."""
    names = list(module.state_dict())
    number = compile_layers(module.model, module.attention, may_fail=False, backend="aot_eager")
    assert number == unwrapped(module.model).config.num_hidden_layers
    assert list(module.state_dict()) == names
    return module


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def breaks() -> int:
    return sum(counters["graph_break"].values())
