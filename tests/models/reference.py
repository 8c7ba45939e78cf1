"""Reference forward of LLaDA and Dream in plain torch, from the formulas and published names.

Independent on purpose: no transformers, no code of `plugin`, and no masks. Padding is removed from
a row before the forward and a packed row is computed document by document, so that padding is
invisible and documents stay apart by construction. Everything is fp64 inside, so that a difference
measures the program under test.

Shapes: S rows, T tokens, V vocabulary; inside, a document of L tokens.
"""

from __future__ import annotations

import math

import torch

State = dict[str, torch.Tensor]


def norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def turn(x, where, theta):
    """Rotate x [heads, L, E]: pair (x_j, x_{j+E/2}) by the angle where * theta^(-2j/E)."""
    half = x.shape[-1] // 2
    rate = torch.tensor([theta ** (-2 * j / x.shape[-1]) for j in range(half)], dtype=torch.float64)
    angle = where.double()[:, None] * rate
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def attend(q, k, v, where, heads, kv_heads, theta):
    """Return the full attention of a document; q [L, heads * E], k and v [L, kv_heads * E]."""
    L = q.shape[0]
    E = q.shape[1] // heads
    q = turn(q.view(L, heads, E).transpose(0, 1), where, theta)
    k = turn(k.view(L, kv_heads, E).transpose(0, 1), where, theta)
    v = v.view(L, kv_heads, E).transpose(0, 1)
    out = []
    for head in range(heads):
        group = head // (heads // kv_heads)  # adjacent query heads share a key head
        out.append(torch.softmax(q[head] @ k[group].T / math.sqrt(E), -1) @ v[group])
    return torch.cat(out, -1)


def swiglu(x, gate, up, down):
    g = x @ gate.T
    return (g * torch.sigmoid(g) * (x @ up.T)) @ down.T


def llada_document(
    state: State, config: dict, ids: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """Return logits [L, V] of a document ids [L] at positions where [L]."""
    w = {name: tensor.double() for name, tensor in state.items()}
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    h = w["model.transformer.wte.weight"][ids]
    for n in range(config["n_layers"]):
        block = {
            name.removeprefix(f"model.transformer.blocks.{n}."): tensor
            for name, tensor in w.items()
            if name.startswith(f"model.transformer.blocks.{n}.")
        }
        x = norm(h, block["attn_norm.weight"], eps)
        q, k, v = (x @ block[f"{part}_proj.weight"].T for part in "qkv")
        h = (
            h
            + attend(q, k, v, where, config["n_heads"], config["n_kv_heads"], theta)
            @ block["attn_out.weight"].T
        )
        x = norm(h, block["ff_norm.weight"], eps)
        h = h + swiglu(x, block["ff_proj.weight"], block["up_proj.weight"], block["ff_out.weight"])
    h = norm(h, w["model.transformer.ln_f.weight"], eps)
    head = (
        "model.transformer.wte.weight"
        if config["weight_tying"]
        else "model.transformer.ff_out.weight"
    )
    return h @ w[head].T


def dream_document(
    state: State, config: dict, ids: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """Return aligned logits [L, V] of a document: row i from state i-1, row 0 from its own."""
    w = {name: tensor.double() for name, tensor in state.items()}
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    h = w["model.embed_tokens.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        x = norm(h, w[layer + "input_layernorm.weight"], eps)
        q, k, v = (
            x @ w[f"{layer}self_attn.{part}_proj.weight"].T
            + w[f"{layer}self_attn.{part}_proj.bias"]
            for part in "qkv"
        )
        h = (
            h
            + attend(q, k, v, where, heads, kv_heads, theta)
            @ w[layer + "self_attn.o_proj.weight"].T
        )
        x = norm(h, w[layer + "post_attention_layernorm.weight"], eps)
        h = h + swiglu(x, *(w[f"{layer}mlp.{part}_proj.weight"] for part in ("gate", "up", "down")))
    h = norm(h, w["model.norm.weight"], eps)
    h = torch.cat((h[:1], h[:-1]))
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return h @ w[head].T


def logits(
    state: State, config: dict, ids: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return logits fp32 [S, T, V] of ids [S, T]; 0 at padding (mask [S, T], 1 = real).

    The family is read from model_type.
    """
    document = {"llada": llada_document, "Dream": dream_document}[config["model_type"]]
    mask = torch.ones_like(ids) if mask is None else mask
    rows = []
    for row, real in zip(ids, mask.bool(), strict=True):
        where = torch.arange(len(row))[real]
        seen = document(state, config, row[real], where)
        full = torch.zeros(len(row), seen.shape[-1], dtype=torch.float64)
        full[real] = seen
        rows.append(full)
    return torch.stack(rows).float()
