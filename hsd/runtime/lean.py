"""One forward of our own for Llama-shaped models: the loaded modules' weights without the modules' overhead.

At batch 1 a small model's step is mostly the cost of getting from one kernel to the next. Here a step is a flat list of
tensor operations (`hsd.runtime.step`): qkv and gate-up fused where the weights allow, keys and values written in place,
rewinding by setting a length. transformers' forward is the reference: the logits are the same in float32, and within
rounding in bf16. Covers Llama, SmolLM2, Mistral without a window, Qwen2/2.5 and Qwen3.

Narrow passes may be taken over by something faster that computes the same function: compiled steps on a CPU, captured
graphs on a GPU. Both are handed in from outside and work on the same cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hsd.errors import ModelError
from hsd.runtime.base import MAX_WIDTH, Drafting
from hsd.runtime.cache import LeanCache
from hsd.runtime.packed import attached
from hsd.runtime.step import Layer, Linear, Product, Shape, Weights, causal, step

_SHAPES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_FIXED_ROPES = ("default", "linear", "llama3", "yarn")  # tables that do not change with the length of the text

FastStep = Callable[[Sequence[int], LeanCache, int], Tensor]
"""Reads ids behind a cache that has room for them, and gives logits of the last n; `LeanModel` sets the new length."""


DraftBlock = Callable[
    [Sequence[int], LeanCache, int, Sequence[float], Tensor | None, Drafting], tuple[list[int], list[float]]
]
"""Drafts a whole block, as `LeanModel.draft` says, in a cache that has room; `LeanModel` sets the new length."""


JudgeBlock = Callable[
    [Sequence[int], LeanCache, Tensor | Sequence[int], Sequence[float], str, Tensor | None, Drafting],
    tuple[int, int, list[int], float],
]
"""Reads a block and decides on it, as `LeanModel.judge` says."""


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
        self._draft: DraftBlock | None = None
        self._judges: dict[int, JudgeBlock] = {}
        self._means = ""
        self.table: object = None  # what `rounds` keeps of the steps, as long as they are these
        self.widest = 0  # tokens that narrow steps read faster, piece by piece, than an eager pass does at once

    @property
    def kind(self) -> str:
        """How a step is computed: costs that were measured for another kind do not hold."""
        return f"lean-2{self._means}"

    def use(self, steps: Mapping[int, FastStep], means: str, draft: DraftBlock | None = None) -> None:
        """From now on passes of these widths run by these steps, all others eagerly.

        Args:
            steps: width -> step.
            means: what they are, in a word; "" for none.
            draft: drafts whole blocks by the same means.
        """
        self._fast, self.table = dict(steps), None
        judges = {width: getattr(step, "judge", None) for width, step in steps.items()}
        self._judges = {width: judge for width, judge in judges.items() if judge is not None}
        self.widest = 0
        self._draft = draft
        self._means = f"+{means}" if means else ""

    @property
    def steps(self) -> Mapping[int, FastStep]:
        """Width -> step of the passes that do not run eagerly; a new object whenever they change."""
        return self._fast

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
        self._fits(width, cache.length, end)
        cache.reserve(end)
        fast = self.in_pieces if MAX_WIDTH < width <= self.widest else self._fast.get(width, self.eager)
        logits = fast(ids, cache, last)
        cache.length = end
        return logits

    def in_pieces(self, ids: Sequence[int], cache: LeanCache, last: int) -> Tensor:
        """A `FastStep` of any width: passes of at most 16 tokens, one after the other."""
        start, logits = cache.length, []
        for begin in range(0, len(ids), MAX_WIDTH):
            piece = ids[begin : begin + MAX_WIDTH]
            wanted = min(len(piece), max(0, last - (len(ids) - begin - len(piece))))
            found = self._fast.get(len(piece), self.eager)(piece, cache, wanted)
            if wanted:
                logits.append(found.clone())  # valid until the next pass only
            cache.length += len(piece)
        cache.length = start
        return torch.cat(logits) if logits else torch.empty((0, self.vocab), dtype=torch.float32, device=self.device)

    @property
    def drafts(self) -> bool:
        """Whether `draft` can be used now."""
        return self._draft is not None

    def draft(
        self,
        ids: Sequence[int],
        cache: LeanCache,
        most: int,
        coins: Sequence[float],
        rows: Tensor | None,
        how: Drafting,
    ) -> tuple[list[int], list[float]]:
        """Drafts up to `most` tokens behind `ids`, each from the model's own distribution: one call for a block.

        Args:
            ids: 1 to 16 tokens that the cache does not hold yet.
            cache: extended by them and by all that is drafted but the last token.
            most: at least 1; there is room for so many.
            coins: one for each, in [0, 1).
            rows: float32 `(at least most, vocab)`, takes the distributions; None where the likeliest are taken.
            how: settings.

        Returns:
            The tokens, and the seconds of each pass. The last token is -1 if its row is no distribution.

        Raises:
            ModelError: there are no ids, or more than the context has room for.
        """
        assert self._draft is not None, "see `drafts`"
        end = cache.length + len(ids)
        self._fits(len(ids), cache.length, end + most - 1)
        cache.reserve(end + most - 1)
        tokens, seconds = self._draft(ids, cache, most, coins, rows, how)
        cache.length = end + len(tokens) - 1 if tokens else cache.length
        return tokens, seconds

    def judges(self, width: int) -> bool:
        """Whether `judge` can be used now for a pass over so many tokens."""
        return width in self._judges

    def judge(
        self,
        ids: Sequence[int],
        cache: LeanCache,
        below: Tensor | Sequence[int],
        coins: Sequence[float],
        rule: str,
        rows: Tensor | None,
        how: Drafting,
    ) -> tuple[int, int, list[int], float]:
        """Reads tokens that end with a block, and decides on it: pass, distributions and verdict in one call.

        Args:
            ids: 1 to 16 tokens that the cache does not hold yet, the block last; see `judges`.
            cache: extended by all of them.
            below: float32 `(block, vocab)`, contiguous, or the tokens themselves where each was certain.
            coins: one for each token of the block, and one more.
            rule: "block" or "token".
            rows: float32 `(at least block + 1, vocab)`, takes the distributions; None where the likeliest are taken.
            how: settings.

        Returns:
            How many tokens are accepted, the one behind them (-1 if there is no distribution to draw it from), the
            likeliest tokens where those are taken, and the seconds of the pass.
        """
        end = cache.length + len(ids)
        self._fits(len(ids), cache.length, end)
        cache.reserve(end)
        decided = self._judges[len(ids)](ids, cache, below, coins, rule, rows, how)
        cache.length = end
        return decided

    def _fits(self, width: int, length: int, end: int) -> None:
        """Raises unless so many tokens can be read behind so many, up to an end."""
        if width < 1 or end < length + width or end > self.context:
            raise ModelError(
                self.name,
                f"it cannot read {end - length} tokens behind {length} of at most {self.context}.",
                "Shorten the conversation, or choose a larger context for this family.",
            )

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
    return Product(weight, None if bias is None else bias.detach(), attached(modules))


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
