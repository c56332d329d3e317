"""One pass of a Llama-shaped model as a flat function of tensors: what runs eagerly, and what is captured.

Nothing here knows a module, a conversation or a device. Keys and values come in as one view per layer that ends where
the sequence ends after this pass; the pass writes its own into the last places. So one function serves every width and
context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Product:
    """A linear layer as data: `x @ weight.T + bias`.

    Args:
        weight: `(out, in)`.
        bias: `(out,)`.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


Linear = Callable[[Tensor], Tensor]
"""A `Product`, or a quantized module that computes one."""


@dataclass(slots=True)
class Layer:
    """What one decoder layer computes with. `qkv` and `gate_up` are fused products, `(w, d) -> (w, …)`."""

    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Shape:
    """What a step must know besides weights.

    Args:
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: size of a head.
        eps: of the root mean square norms.
    """

    heads: int
    kv_heads: int
    head_dim: int
    eps: float


@dataclass(slots=True)
class Weights:
    """A model's tensors. `cos` and `sin` are `(context, 1, head_dim)`; the sine's first half carries the minus sign."""

    embedding: Tensor
    layers: list[Layer]
    norm: Tensor
    head: Linear
    cos: Tensor
    sin: Tensor


def step(
    shape: Shape,
    weights: Weights,
    ids: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    mask: Tensor | None,
    places: Tensor | None = None,
    last: int | None = None,
) -> Tensor:
    """Reads `w` tokens behind what is cached.

    Args:
        shape: heads and sizes.
        weights: the model.
        ids: `(w,)` token ids.
        cos: `(w, 1, head_dim)` of their positions.
        sin: likewise.
        keys: per layer `(span, kv_heads, head_dim)`, in the dtype that attention computes in; written in place.
        values: likewise.
        mask: `(w, span)`, 0 where a new token sees a position and -inf where not; None if all see all.
        places: `(w,)` positions to write to; None is the last `w` of the span.
        last: for how many of the last tokens logits are wanted; None is all, 0 gives none.

    Returns:
        float32 `(last, vocab)`.
    """
    hidden = F.embedding(ids, weights.embedding)  # (w, d)
    for layer, k, v in zip(weights.layers, keys, values, strict=True):
        qkv = layer.qkv(_rms(hidden, layer.input_norm, shape.eps))
        attended = _attend(shape, layer, qkv, k, v, cos, sin, mask, places)
        hidden = hidden + layer.out(attended.to(hidden.dtype))
        gate, up = layer.gate_up(_rms(hidden, layer.post_norm, shape.eps)).chunk(2, dim=-1)
        hidden = hidden + layer.down(F.silu(gate) * up)
    if last is not None:
        hidden = hidden[hidden.shape[0] - last :]
    return weights.head(_rms(hidden, weights.norm, shape.eps)).float()


def causal(width: int, span: int, like: Tensor) -> Tensor | None:
    """The mask of `width` tokens at the end of a span of which they see all but each other's later ones."""
    if width == 1:
        return None
    mask = like.new_zeros((width, span))
    mask[:, span - width :] = like.new_full((width, width), -torch.inf).triu_(1)
    return mask


def _attend(
    shape: Shape,
    layer: Layer,
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
    places: Tensor | None,
) -> Tensor:
    """Attention of the new positions over the span; returns `(w, heads * head_dim)`."""
    width, span = qkv.shape[0], keys.shape[0]
    heads, kv, size = shape.heads, shape.kv_heads, shape.head_dim
    qkv = qkv.view(width, heads + 2 * kv, size)
    qk, new_values = qkv[:, : heads + kv], qkv[:, heads + kv :]
    if layer.q_norm is not None and layer.k_norm is not None:
        eps = shape.eps
        qk = torch.cat((_rms(qk[:, :heads], layer.q_norm, eps), _rms(qk[:, heads:], layer.k_norm, eps)), dim=1)
    # The rotation of both halves at once; the sign of the first half's sine is in the table.
    qk = qk.to(keys.dtype)
    swapped = qk.unflatten(-1, (2, size // 2)).flip(2).flatten(2)
    qk = torch.addcmul(qk * cos, swapped, sin)
    if places is None:
        keys[span - width :].copy_(qk[:, heads:])
        values[span - width :].copy_(new_values)
    else:
        keys.index_copy_(0, places, qk[:, heads:])
        values.index_copy_(0, places, new_values.to(values.dtype))
    # Query heads of one key head are further rows of the same product: no repeated keys.
    group = heads // kv
    q = qk[:, :heads].view(width, kv, group, size).permute(1, 2, 0, 3).reshape(kv, group * width, size)
    scores = torch.bmm(q, keys.permute(1, 2, 0)) * size**-0.5  # (kv, group * w, span)
    if mask is not None:
        scores = (scores.view(kv, group, width, span) + mask).view(kv, group * width, span)
    weight = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    out = torch.bmm(weight, values.transpose(0, 1))
    return out.view(kv, group, width, size).permute(2, 0, 1, 3).reshape(width, heads * size)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    # As the modules do it: in float32, rounded once, then scaled.
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)
