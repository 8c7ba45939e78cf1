"""Published sizes of masked-diffusion models, and their parameters.

Source: the configurations of SMDM (ML-GSAI/SMDM, "Scaling up Masked Diffusion Models on Text",
arXiv 2410.18514). A size is named by its parameters in millions, embeddings and head left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..config.families import SIZED_FAMILY

VOCABULARY = 32_000  # of the published models' tokenizer, TinyLlama's
LENGTH = 2048  # tokens of a published row
ROPE_THETA, NORM_EPS = 10_000.0, 1e-5  # of the published models, which are TinyLlama's blocks


@dataclass(frozen=True)
class Size:
    """Shape of a transformer with full heads, a gated feed-forward part and no biases."""

    name: int  # millions of parameters
    layers: int
    heads: int
    width: int
    inner: int  # of the feed-forward part

    @property
    def parameters(self) -> int:
        """Return the parameters without embeddings and head: L (4 d^2 + 3 d f) + (2 L + 1) d.

        Four projections of attention, three of the feed-forward part, two norms a layer, one at the
        end.
        """
        projections = 4 * self.width**2 + 3 * self.width * self.inner
        return self.layers * projections + (2 * self.layers + 1) * self.width

    def config(self, vocabulary: int = VOCABULARY, length: int = LENGTH) -> dict[str, Any]:
        """Return the config.json of a LLaDA of this size, which has exactly these weights."""
        return {
            "model_type": SIZED_FAMILY,
            "d_model": self.width,
            "n_heads": self.heads,
            "n_kv_heads": self.heads,
            "n_layers": self.layers,
            "mlp_hidden_size": self.inner,
            "vocab_size": vocabulary,
            "embedding_size": vocabulary,
            "max_sequence_length": length,
            "rope_theta": ROPE_THETA,
            "rms_norm_eps": NORM_EPS,
            "weight_tying": False,
        }


_ROWS = (
    (6, 6, 4, 256, 1024),
    (19, 8, 6, 384, 1536),
    (34, 8, 8, 512, 2048),
    (48, 9, 9, 576, 2304),
    (66, 10, 10, 640, 2560),
    (75, 16, 8, 640, 1600),
    (85, 13, 10, 640, 2560),
    (113, 12, 12, 768, 3072),
    (142, 15, 12, 768, 3072),
    (170, 18, 12, 768, 3072),
    (180, 14, 14, 896, 3584),
    (206, 16, 14, 896, 3584),
    (231, 18, 14, 896, 3584),
    (268, 16, 16, 1024, 4096),
    (302, 18, 16, 1024, 4096),
    (336, 20, 16, 1024, 4096),
    (472, 18, 10, 1280, 5120),
    (551, 21, 10, 1280, 5120),
    (571, 18, 11, 1408, 5632),
    (629, 24, 10, 1280, 5120),
    (666, 21, 11, 1408, 5632),
    (717, 19, 12, 1536, 6144),
    (761, 24, 11, 1408, 5632),
    (831, 22, 12, 1536, 6144),
    (944, 25, 12, 1536, 6144),
    (1028, 20, 14, 1792, 7168),
    (1233, 24, 14, 1792, 7168),
    (1476, 22, 16, 2048, 8192),
    (1678, 25, 16, 2048, 8192),
    (2121, 28, 17, 2176, 8704),
)
SIZES = {name: Size(name, *shape) for name, *shape in _ROWS}


def nearest_size(parameters: float) -> Size:
    """Return the published size whose number of parameters is nearest by ratio."""
    return min(SIZES.values(), key=lambda size: abs(math.log(size.parameters / parameters)))
