"""Replies of the target, many at once, with the likeliest tokens of every place kept: what drafts are distilled from.

A draft that learns from kept distributions needs no pass of the target while it trains, and reads them as often as it
likes. Rows that have ended are taken out of the batch, so the last long reply does not hold up the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaForCausalLM

KEPT = 32
"""Tokens kept of every distribution; at temperature 1 all others together have 0.1% of the target's probability."""

LONGEST = 128  # tokens of a reply
_ROWS = {"cpu": 192, "cuda": 1024}
_PLACES = {"cpu": 60_000, "cuda": 1_000_000}  # cached at once
_FULL = 0.85  # rows are taken out when no more than this part of them is still alive


@dataclass(frozen=True)
class Written:
    """A reply and what the target thought while it wrote.

    Attributes:
        prompt: [prompt] ids.
        ids: [reply] ids, the end token included if it ended.
        likeliest: [reply, KEPT] ids, likeliest first.
        logs: [reply, KEPT] their log-probabilities in nats at temperature 1.
    """

    prompt: NDArray[np.uint16]
    ids: NDArray[np.uint16]
    likeliest: NDArray[np.uint16]
    logs: NDArray[np.float16]


class Writer:
    """Samples from a model of the family: the same numbers as transformers in bfloat16, on a CPU twice as fast.

    Args:
        model: in Llama shape, with as many key heads as heads.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        config, body = model.config, model.model
        self._heads, self._eps = int(config.num_attention_heads), float(config.rms_norm_eps)
        self._end, self._device = int(config.eos_token_id), model.device
        self._embedding, self._norm = _half(body.embed_tokens.weight), _half(body.norm.weight)
        self._layers = [
            (
                _half(layer.input_layernorm.weight),
                _half(torch.cat([getattr(layer.self_attn, f"{part}_proj").weight for part in "qkv"])),
                _half(layer.self_attn.o_proj.weight),
                _half(layer.post_attention_layernorm.weight),
                _half(torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])),
                _half(layer.mlp.down_proj.weight),
            )
            for layer in body.layers
        ]
        angles = torch.arange(config.max_position_embeddings)[:, None] * body.rotary_emb.inv_freq.float().cpu()
        turned = torch.cat([angles, angles], -1).to(self._device)
        self._cos, self._sin = turned.cos(), turned.sin()

    @torch.inference_mode()
    def write(
        self, prompts: Sequence[Sequence[int]], temperatures: Sequence[float], seed: int, longest: int = LONGEST
    ) -> list[Written]:
        """A reply to every prompt, in their order; drawn from the KEPT likeliest tokens.

        Args:
            temperatures: one for every prompt; 0 takes the likeliest token.
        """
        coins = torch.Generator(self._device).manual_seed(seed)
        found: dict[int, Written] = {}
        groups = list(self._groups(prompts, longest))
        for group in tqdm(groups, desc="replies", mininterval=5, disable=len(groups) < 2):
            found.update(self._group(group, prompts, temperatures, coins, longest))
        return [found[i] for i in range(len(prompts))]

    def _groups(self, prompts: Sequence[Sequence[int]], longest: int) -> Iterator[list[int]]:
        """Prompts of about one length, as many as the cache holds."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        most, places = (limit.get(self._device.type, limit["cpu"]) for limit in (_ROWS, _PLACES))
        while order:
            widest = len(prompts[order[min(most, len(order)) - 1]]) + longest
            count = max(1, min(most, places // widest))
            yield order[:count]
            del order[:count]

    def _group(
        self,
        group: list[int],
        prompts: Sequence[Sequence[int]],
        temperatures: Sequence[float],
        coins: torch.Generator,
        longest: int,
    ) -> dict[int, Written]:
        width = max(len(prompts[i]) for i in group)
        lengths = torch.tensor([len(prompts[i]) for i in group], device=self._device)
        heat = torch.tensor([temperatures[i] for i in group], device=self._device)[:, None]
        hidden, cache, real = self._read([prompts[i] for i in group], lengths, width + longest)
        rows = torch.arange(len(group), device=self._device)  # which reply a row of the batch writes
        tokens = torch.zeros(longest, len(group), dtype=torch.int64)
        likeliest = torch.zeros(longest, len(group), min(KEPT, len(self._embedding)), dtype=torch.int32)
        logs = torch.zeros(likeliest.shape, dtype=torch.float16)
        ended = torch.full((len(group),), longest)
        alive = torch.ones(len(group), dtype=torch.bool)  # by row of the batch
        for step in range(longest):
            top, best = torch.log_softmax(self._logits(hidden[:, -1]), -1).topk(likeliest.shape[2], -1)
            chosen = best.gather(1, _draw(top, heat[rows], coins))[:, 0]
            kept = rows.cpu()
            tokens[step, kept], likeliest[step, kept], logs[step, kept] = (
                chosen.cpu(),
                best.int().cpu(),
                top.half().cpu(),
            )
            over = alive & (chosen == self._end).cpu()
            ended[kept[over]] = step + 1
            alive &= ~over
            if not alive.any() or step == longest - 1:
                break
            if alive.float().mean() < _FULL:
                stay = alive.nonzero()[:, 0].to(self._device)
                rows, chosen, real, alive = rows[stay], chosen[stay], real[stay], alive[alive]
                cache = [[_shrunk(part, stay, width + step) for part in pair] for pair in cache]
            seen, here = real[:, None, None, : width + step + 1], (lengths[rows] + step)[:, None]
            hidden = self._pass(chosen[:, None], here, cache, width + step, seen)
        said, best_ids = tokens.numpy().astype(np.uint16), likeliest.numpy().astype(np.uint16)
        return {
            i: Written(np.array(prompts[i], np.uint16), said[:n, at], best_ids[:n, at], logs.numpy()[:n, at])
            for at, (i, n) in enumerate(zip(group, ended.tolist(), strict=True))
        }

    def _read(
        self, prompts: list[Sequence[int]], lengths: Tensor, room: int
    ) -> tuple[Tensor, list[list[Tensor]], Tensor]:
        """Prompts, padded on the left: hidden states, a cache of `room` places, and which of these are no padding."""
        width = int(lengths.max())
        ids = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in prompts], device=self._device)
        places = torch.arange(room, device=self._device)
        pads = (width - lengths)[:, None]
        real = places >= pads
        seen = (places[:width] <= places[:width, None]) & real[:, None, :width]
        seen |= torch.eye(width, dtype=torch.bool, device=self._device)  # a place that sees nothing would be NaN
        size = len(prompts), self._heads, room, self._layers[0][2].shape[1] // self._heads
        cache = [[ids.new_zeros(size, dtype=torch.bfloat16) for _ in "kv"] for _ in self._layers]
        return self._pass(ids, (places[:width] - pads).clamp(min=0), cache, 0, seen[:, None]), cache, real

    def _pass(self, ids: Tensor, places: Tensor, cache: list[list[Tensor]], start: int, seen: Tensor) -> Tensor:
        """[rows, new, width] hidden states of new tokens; their keys and values go into the cache."""
        count, new = ids.shape
        hidden = F.embedding(ids, self._embedding)
        cos, sin = self._cos[places][:, None], self._sin[places][:, None]
        for (norm, qkv, out, second, gate_up, down), (keys, values) in zip(self._layers, cache, strict=True):
            made = F.linear(self._scaled(hidden, norm), qkv).view(count, new, 3, self._heads, -1)
            query, key, value = (made[:, :, part].transpose(1, 2) for part in range(3))
            keys[:, :, start : start + new], values[:, :, start : start + new] = _rotated(key, cos, sin), value
            held = keys[:, :, : start + new], values[:, :, : start + new]
            mixed = F.scaled_dot_product_attention(_rotated(query, cos, sin), *held, attn_mask=seen)
            hidden = hidden + F.linear(mixed.transpose(1, 2).reshape(count, new, -1), out)
            gate, up = F.linear(self._scaled(hidden, second), gate_up).chunk(2, -1)
            hidden = hidden + F.linear(F.silu(gate) * up, down)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(self._scaled(hidden, self._norm), self._embedding).float()

    def _scaled(self, hidden: Tensor, weight: Tensor) -> Tensor:
        wide = hidden.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps)).bfloat16() * weight


def _half(weight: Tensor) -> Tensor:
    return weight.detach().bfloat16().contiguous()


def _rotated(part: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide, half = part.float(), part.shape[-1] // 2
    return (wide * cos + torch.cat([-wide[..., half:], wide[..., :half]], -1) * sin).bfloat16()


def _draw(top: Tensor, heat: Tensor, coins: torch.Generator) -> Tensor:
    """[rows, 1] places in `top`: the largest of probability over an exponential variable, and the first at heat 0."""
    chances = torch.softmax(top / heat.clamp(min=1e-3), -1)
    raced = (chances / torch.empty_like(chances).exponential_(generator=coins)).argmax(-1, keepdim=True)
    return torch.where(heat > 0, raced, torch.zeros_like(raced))


def _shrunk(part: Tensor, stay: Tensor, filled: int) -> Tensor:
    smaller = part.new_zeros(len(stay), *part.shape[1:])
    smaller[:, :, :filled] = part[stay, :, :filled]
    return smaller
