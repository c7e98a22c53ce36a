"""MPT's equations in float64, by its paper code's configuration alone: what transformers' own MPT ignores is here.

Grouped and single keys and values, learned positions, biases, norms of q and k, another alibi_bias_max, logit_scale.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["logits"]

Array = NDArray[np.float64]


def logits(config: dict[str, Any], tensors: dict[str, Array], ids: list[int]) -> Array:
    """[tokens, V] of a sequence."""
    attn, heads, n = config["attn_config"], config["n_heads"], len(ids)
    d = config["d_model"] // heads
    distances = np.arange(n)[None] - np.arange(n)[:, None]
    kinds = {"multihead_attention": heads, "multiquery_attention": 1}
    groups = kinds.get(attn["attn_type"]) or attn["kv_n_heads"]

    def linear(x: Array, name: str) -> Array:
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normed * tensors[f"{name}.weight"] + tensors.get(f"{name}.bias", 0.0)

    def attend(x: Array, at: str) -> Array:
        qkv = linear(x, f"{at}.Wqkv")
        if attn.get("clip_qkv"):
            qkv = np.clip(qkv, -attn["clip_qkv"], attn["clip_qkv"])
        q, k, v = np.split(qkv, [heads * d, (heads + groups) * d], axis=1)
        if attn.get("qk_ln"):
            q, k = norm(q, f"{at}.q_ln"), norm(k, f"{at}.k_ln")
        out = np.empty((n, heads, d))
        for head in range(heads):
            group = head // (heads // groups)
            mine, theirs = slice(head * d, (head + 1) * d), slice(group * d, (group + 1) * d)
            scores = q[:, mine] @ k[:, theirs].T * (attn.get("softmax_scale") or 1 / math.sqrt(d))
            if attn["alibi"]:
                scores += _slope(head, heads, attn.get("alibi_bias_max", 8)) * distances
            scores[np.triu_indices(n, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, theirs]
        return linear(out.reshape(n, -1), f"{at}.out_proj")

    x = tensors["transformer.wte.weight"][ids]
    if not attn["alibi"]:
        x = x + tensors["transformer.wpe.weight"][:n]
    for i in range(config["n_layers"]):
        at = f"transformer.blocks.{i}"
        x = x + attend(norm(x, f"{at}.norm_1"), f"{at}.attn")
        inner = linear(norm(x, f"{at}.norm_2"), f"{at}.ffn.up_proj")
        gelu = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = x + linear(gelu, f"{at}.ffn.down_proj")
    scale = config.get("logit_scale") or 1.0
    scale = config["d_model"] ** -0.5 if scale == "inv_sqrt_d_model" else scale
    found: Array = norm(x, "transformer.norm_f") @ tensors["transformer.wte.weight"].T * scale
    return found


def _slope(head: int, heads: int, bias_max: float) -> float:
    """Of as many heads as the next power of two: every second from the second on, then the others, cut."""
    whole = 1 << (heads - 1).bit_length()
    order = list(range(1, whole + 1))
    if whole != heads:
        order = order[1::2] + order[::2]
    return float(2 ** -(order[head] * bias_max / whole))
