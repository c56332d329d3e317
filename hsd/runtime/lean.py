"""One forward of our own for Llama-shaped models: the loaded modules' weights without the modules' overhead.

At batch 1 a small model's step is mostly the cost of getting from one kernel to the next. Here a step is a flat list of
tensor operations per layer: qkv and gate-up fused where the weights allow, keys and values written in place into a
preallocated cache, rewinding by setting a length. transformers' forward is the reference: the logits are the same in
float32, and within rounding in bf16. Covers Llama, SmolLM2, Mistral without a window, Qwen2/2.5 and Qwen3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SHAPES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_FIXED_ROPES = ("default", "linear", "llama3", "yarn")  # tables that do not change with the length of the text
_CACHE_STEP = 256  # tokens by which a cache grows at least


def refusal(model: Any) -> str | None:
    """Why this model cannot run lean, in words; None if it can."""
    name = type(model).__name__
    if name not in _SHAPES:
        return f"{name} is not Llama-shaped"
    config = model.config
    if getattr(config, "hidden_act", "silu") != "silu":
        return f"its activation is {config.hidden_act}"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if kinds != {"full_attention"} or (name == "MistralForCausalLM" and window):
        return "it uses sliding-window attention"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _FIXED_ROPES:
        return f"its rotary embedding '{rope}' changes with the length of the text"
    devices = {p.device for p in model.parameters()}
    if len(devices) != 1 or "meta" in {d.type for d in devices}:
        return "it is spread over several devices"
    return None


class LeanCache:
    """Keys and values of all layers, `(layers, kv_heads, capacity, head_dim)` each; grows as it fills."""

    def __init__(self, layers: int, heads: int, head_dim: int, context: int, like: Tensor) -> None:
        self._context = context
        self.keys = like.new_empty((layers, heads, 0, head_dim))
        self.values = like.new_empty((layers, heads, 0, head_dim))
        self.length = 0

    @property
    def nbytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()

    def rewind(self, length: int) -> None:
        self.length = length

    def copy(self, length: int) -> LeanCache:
        layers, heads, _, head_dim = self.keys.shape
        new = LeanCache(layers, heads, head_dim, self._context, self.keys)
        new.reserve(length)
        new.keys[:, :, :length] = self.keys[:, :, :length]
        new.values[:, :, :length] = self.values[:, :, :length]
        new.length = length
        return new

    def reserve(self, length: int) -> None:
        """Makes room for `length` tokens, doubling so that growth costs amortised constant time per token."""
        capacity = self.keys.shape[2]
        if length <= capacity:
            return
        capacity = min(max(length, 2 * capacity, _CACHE_STEP), max(self._context, length))
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)


@dataclass(slots=True)
class _Layer:
    """What one decoder layer computes with. `qkv` and `gate_up` are the fused products, `(w, d) -> (w, …)`."""

    input_norm: Tensor
    qkv: Callable[[Tensor], Tensor]
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Callable[[Tensor], Tensor]
    post_norm: Tensor
    gate_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class LeanModel:
    """A `LanguageModel` over a loaded transformers model; see the module's text.

    Args:
        name: its name in the family.
        model: a model for which `refusal` gives None. Its plain linears are re-pointed at fused weights, so that
            nothing is held twice and its own forward keeps working.
        context: longest sequence in tokens.
    """

    kind = "lean"
    cuttable = True

    def __init__(self, name: str, model: Any, context: int) -> None:
        config = model.config
        self.name = name
        self.vocab = model.lm_head.out_features
        self.context = context
        self.device = next(model.parameters()).device
        self._embedding = model.model.embed_tokens.weight
        self.dtype = str(self._embedding.dtype).removeprefix("torch.")
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._eps = config.rms_norm_eps
        self._layers = [_layer(layer) for layer in model.model.layers[: config.num_hidden_layers]]
        self._norm = model.model.norm.weight
        self._head = _product([model.lm_head])
        # bf16 attention kernels on a CPU are slower than float32 ones; the cache is small beside the weights.
        on_cpu = self.device.type == "cpu"
        self._attention_dtype = torch.float32 if on_cpu else self._embedding.dtype
        self._cos, self._sin = self._rope_tables(model.model.rotary_emb)

    def new_cache(self) -> LeanCache:
        like = torch.empty(0, dtype=self._attention_dtype, device=self.device)
        return LeanCache(len(self._layers), self._kv_heads, self._head_dim, self.context, like)

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: LeanCache, last: int) -> Tensor:
        """See `LanguageModel.forward`."""
        width, start = len(ids), cache.length
        end = start + width
        cache.reserve(end)
        hidden = self._embedding[torch.tensor(ids, device=self.device)]  # (w, d)
        cos, sin = self._cos[start:end], self._sin[start:end]  # (w, 1, head_dim)
        mask = self._mask(width) if width > 1 else None
        for i, layer in enumerate(self._layers):
            qkv = layer.qkv(self._rms(hidden, layer.input_norm))
            attended = self._attend(layer, qkv, cache.keys[i], cache.values[i], start, cos, sin, mask)
            hidden = hidden + layer.out(attended.to(hidden.dtype))
            gate, up = layer.gate_up(self._rms(hidden, layer.post_norm)).chunk(2, dim=-1)
            hidden = hidden + layer.down(F.silu(gate) * up)
        cache.length = end
        if last == 0:
            return hidden.new_empty((0, self.vocab))
        return self._head(self._rms(hidden[width - last :], self._norm)).float()

    def _attend(
        self,
        layer: _Layer,
        qkv: Tensor,
        keys: Tensor,
        values: Tensor,
        start: int,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Attention of `w` new positions over everything cached; returns `(w, heads * head_dim)`."""
        width, heads, kv = qkv.shape[0], self._heads, self._kv_heads
        end = start + width
        qkv = qkv.view(width, heads + 2 * kv, self._head_dim)
        qk, v = qkv[:, : heads + kv], qkv[:, heads + kv :]
        if layer.q_norm is not None and layer.k_norm is not None:
            qk = torch.cat((self._rms(qk[:, :heads], layer.q_norm), self._rms(qk[:, heads:], layer.k_norm)), dim=1)
        # The rotation of both halves at once; the sign of the first half's sine is in the table.
        qk = qk.to(self._attention_dtype)
        swapped = qk.view(width, heads + kv, 2, self._head_dim // 2).flip(2).view_as(qk)
        qk = torch.addcmul(qk * cos, swapped, sin)
        keys[:, start:end] = qk[:, heads:].transpose(0, 1)
        values[:, start:end] = v.transpose(0, 1)
        # Query heads of one key head are further rows of the same product: no repeated keys.
        group = heads // kv
        q = qk[:, :heads].view(width, kv, group, self._head_dim).permute(1, 2, 0, 3)
        q = q.reshape(kv, group * width, self._head_dim)
        scores = torch.bmm(q, keys[:, :end].transpose(1, 2)).mul_(self._head_dim**-0.5)  # (kv, group * w, end)
        if mask is not None:
            scores.view(kv, group, width, end)[..., start:] += mask
        out = torch.bmm(torch.softmax(scores, dim=-1), values[:, :end])
        return out.view(kv, group, width, self._head_dim).permute(2, 0, 1, 3).reshape(width, -1)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), weight, self._eps)
        # As the modules do it: in float32, rounded once, then scaled.
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)
        return weight * wide.to(x.dtype)

    def _mask(self, width: int) -> Tensor:
        """`(w, w)`: new positions do not see later new ones."""
        full = torch.full((width, width), -torch.inf, dtype=self._attention_dtype, device=self.device)
        return full.triu_(1)

    def _rope_tables(self, rotary: Any) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of every position, `(context, 1, head_dim)`, from the model's own module."""
        places = torch.arange(self.context, device=self.device).unsqueeze(0)
        like = torch.empty(0, dtype=self._embedding.dtype, device=self.device)
        with torch.inference_mode():
            # The modules round the tables to the model's dtype; so do these, or positions would differ in bf16.
            cos, sin = rotary(like, places)
        sin = sin.clone()
        sin[..., : self._head_dim // 2] *= -1
        return cos[0].unsqueeze(1).to(self._attention_dtype), sin[0].unsqueeze(1).to(self._attention_dtype)


def _layer(module: Any) -> _Layer:
    attention, mlp = module.self_attn, module.mlp
    return _Layer(
        input_norm=module.input_layernorm.weight,
        qkv=_product([attention.q_proj, attention.k_proj, attention.v_proj]),
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        out=_product([attention.o_proj]),
        post_norm=module.post_attention_layernorm.weight,
        gate_up=_product([mlp.gate_proj, mlp.up_proj]),
        down=_product([mlp.down_proj]),
    )


def _product(modules: list[Any]) -> Callable[[Tensor], Tensor]:
    """The modules' products side by side: one matrix where they are plain linears, else (quantized) one by one."""
    if any(type(m) is not nn.Linear for m in modules):
        if len(modules) == 1:
            return modules[0]
        return lambda x: torch.cat([m(x) for m in modules], dim=-1)
    if len(modules) == 1:
        weight, bias = modules[0].weight.detach(), modules[0].bias
    else:
        weight = _fuse(modules, "weight")
        bias = _fuse(modules, "bias") if modules[0].bias is not None else None
    bias = None if bias is None else bias.detach()
    return lambda x: F.linear(x, weight, bias)


@torch.no_grad()
def _fuse(modules: list[Any], name: str) -> Tensor:
    """One tensor of all; the modules' own parameters become views of it."""
    fused = torch.cat([getattr(m, name) for m in modules]).detach()
    begin = 0
    for module in modules:
        parameter = getattr(module, name)
        parameter.data = fused[begin : begin + parameter.shape[0]]
        begin += parameter.shape[0]
    return fused
