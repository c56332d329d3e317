"""One forward of our own for Llama-shaped models: the loaded modules' weights without the modules' overhead.

At batch 1 a small model's step is mostly the cost of getting from one kernel to the next. Here a step is a flat list of
tensor operations (`hsd.runtime.step`): qkv and gate-up fused where the weights allow, keys and values written in place,
rewinding by setting a length. transformers' forward is the reference: the logits are the same in float32, and within
rounding in bf16. Covers Llama, SmolLM2, Mistral without a window, Qwen2/2.5 and Qwen3.

This is for NVIDIA GPUs, where narrow passes are captured graphs, which are handed in from outside and work on the same
cache. On a processor transformers' own forward is no slower; there this one runs in tests alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hsd.runtime.base import check_room
from hsd.runtime.cache import LeanCache
from hsd.runtime.step import Layer, Linear, Product, Shape, Weights, causal, step

_SHAPES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_FIXED_ROPES = ("default", "linear", "llama3", "yarn")  # tables that do not change with the length of the text

FastStep = Callable[[Sequence[int], LeanCache, int], Tensor]
"""Reads ids behind a cache that has room for them, and gives logits of the last n; `LeanModel` sets the new length."""


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


class LeanModel:
    """A `LanguageModel` over a loaded transformers model; see the module's text.

    Args:
        name: its name in the family.
        model: a model for which `refusal` gives None. Its plain linears are re-pointed at fused weights, so that
            nothing is held twice and its own forward keeps working.
        context: longest sequence in tokens.
    """

    cuttable, single = True, False

    def __init__(self, name: str, model: Any, context: int) -> None:
        config = model.config
        self.name = name
        self.vocab = model.lm_head.out_features
        self.context = context
        self.device = next(model.parameters()).device
        embedding = model.model.embed_tokens.weight.detach()
        self.dtype = str(embedding.dtype).removeprefix("torch.")
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.shape = Shape(heads, config.num_key_value_heads, head_dim, config.rms_norm_eps)
        # bf16 attention kernels on a CPU are slower than float32 ones; the cache is small beside the weights.
        self._attention_dtype = torch.float32 if self.device.type == "cpu" else embedding.dtype
        cos, sin = self._rope_tables(model.model.rotary_emb, embedding.dtype)
        layers = [_layer(layer) for layer in model.model.layers[: config.num_hidden_layers]]
        self.weights = Weights(embedding, layers, model.model.norm.weight.detach(), _product([model.lm_head]), cos, sin)
        self._fast: dict[int, FastStep] = {}
        self._means = ""

    @property
    def kind(self) -> str:
        """How a step is computed: costs that were measured for another kind do not hold."""
        return f"lean-2{self._means}"

    def use(self, steps: Mapping[int, FastStep], means: str) -> None:
        """From now on passes of these widths run by these steps, all others eagerly.

        Args:
            steps: width -> step.
            means: what they are, in a word; "" for none.
        """
        self._fast = dict(steps)
        self._means = f"+{means}" if means else ""

    def new_cache(self) -> LeanCache:
        sizes = len(self.weights.layers), self.shape.kv_heads, self.shape.head_dim, self.context
        return LeanCache(*sizes, self._attention_dtype, self.device)

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: LeanCache, last: int) -> Tensor:
        """See `LanguageModel.forward`.

        Raises:
            ModelError: there are no ids, or more than the context has room for.
        """
        width, end = len(ids), cache.length + len(ids)
        check_room(self.name, width, cache.length, self.context)
        cache.reserve(end)
        logits = self._fast.get(width, self.eager)(ids, cache, last)
        cache.length = end
        return logits

    def eager(self, ids: Sequence[int], cache: LeanCache, last: int) -> Tensor:
        """A pass as a list of tensor operations; what every faster step is compared with. Needs reserved room."""
        weights, start, end = self.weights, cache.length, cache.length + len(ids)
        views, layers = cache.views(end), len(weights.layers)
        return step(
            self.shape,
            weights,
            torch.tensor(ids, device=self.device),
            weights.cos[start:end],
            weights.sin[start:end],
            views[:layers],
            views[layers:],
            causal(len(ids), end, weights.cos),
            last=last,
        )

    def _rope_tables(self, rotary: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of every position, `(context, 1, head_dim)`, from the model's own module."""
        places = torch.arange(self.context, device=self.device).unsqueeze(0)
        like = torch.empty(0, dtype=dtype, device=self.device)
        with torch.no_grad():
            # The modules round the tables to the model's dtype; so do these, or positions would differ in bf16.
            cos, sin = rotary(like, places)
        sin = sin.clone()
        sin[..., : self.shape.head_dim // 2] *= -1
        return cos[0].unsqueeze(1).to(self._attention_dtype), sin[0].unsqueeze(1).to(self._attention_dtype)


def _layer(module: Any) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    return Layer(
        input_norm=module.input_layernorm.weight.detach(),
        qkv=_product([attention.q_proj, attention.k_proj, attention.v_proj]),
        q_norm=attention.q_norm.weight.detach() if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight.detach() if hasattr(attention, "k_norm") else None,
        out=_product([attention.o_proj]),
        post_norm=module.post_attention_layernorm.weight.detach(),
        gate_up=_product([mlp.gate_proj, mlp.up_proj]),
        down=_product([mlp.down_proj]),
    )


def _product(modules: list[Any]) -> Linear:
    """The modules' products side by side: one matrix where they are plain linears, else (quantized) one by one."""
    if any(type(m) is not nn.Linear for m in modules):
        if len(modules) == 1:
            one: Linear = modules[0]
            return one
        return lambda x: torch.cat([m(x) for m in modules], dim=-1)
    if len(modules) == 1:
        weight, bias = modules[0].weight.detach(), modules[0].bias
    else:
        weight = _fuse(modules, "weight")
        bias = _fuse(modules, "bias") if modules[0].bias is not None else None
    return Product(weight, None if bias is None else bias.detach())


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
