"""Weights in 4 and 8 bits as the native library reads them: what bitsandbytes stored, laid out for narrow passes.

A step costs what it costs to read the weights, so it should read them as small as they are stored. The library unpacks
them on the way, to the very numbers that `dequantize` gives in bfloat16, so both give the same logits, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

BLOCK = 64
"""Columns that share a scale in 4 bits."""

BYTES = {"nf4": 0.5 + 4 / BLOCK, "int8": 1.0}
"""Of memory for a weight."""

LARGEST = 4 << 30
"""Bytes of weights in bfloat16 beyond which they are not held packed as well."""

ATTRIBUTE = "packed"
"""Of a module."""

ROWS = 16


@dataclass(frozen=True, slots=True)
class FourBits:
    """A weight `(out, in)` in blocks of 16 rows and 64 columns.

    Args:
        codes: uint8 `(out / 16, in / 64, 16, 32)`: column j of a block in the low half of byte j, 32 + j in the high.
        scales: float32 `(out / 16, in / 64, 16)`.
        table: float32 `(16,)`, what a code stands for before it is scaled.
    """

    bits: ClassVar[int] = 4
    codes: Tensor
    scales: Tensor
    table: Tensor | None

    @classmethod
    def of(cls, module: Any) -> FourBits | None:
        """What a `bitsandbytes.nn.Linear4bit` holds, as it was stored; None if its sizes or blocks are others."""
        from bitsandbytes.functional import dequantize_blockwise

        state = module.weight.quant_state
        if state is None or state.blocksize != BLOCK or getattr(state, "packing_format_for_cpu", False):
            return None
        rows, columns = state.shape
        if rows % ROWS or columns % BLOCK:
            return None
        absmax = state.absmax
        if state.nested:
            absmax = dequantize_blockwise(absmax, state.state2) + state.offset
        stored = module.weight.data.view(torch.uint8).flatten()
        codes = torch.stack((stored >> 4, stored & 15), dim=-1)
        blocks = (rows // ROWS, ROWS, columns // BLOCK)
        low, high = codes.view(*blocks, 2, BLOCK // 2).unbind(-2)
        scales = absmax.float().view(blocks)
        return cls(
            (low | high << 4).transpose(1, 2).contiguous(),
            scales.transpose(1, 2).contiguous(),
            state.code.float().contiguous(),
        )

    def unpacked(self) -> Tensor:
        """The weight, `(out, in)` bfloat16: what the library computes with."""
        assert self.table is not None
        codes = torch.cat((self.codes & 15, self.codes >> 4), dim=-1)
        values = (self.table[codes.int()] * self.scales.unsqueeze(-1)).bfloat16()
        return values.transpose(1, 2).flatten(2).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class EightBits:
    """A weight `(out, in)`, row by row.

    Args:
        codes: int8 `(out, in)`.
        scales: float32 `(out,)`, what 127 stands for.
        table: none.
    """

    bits: ClassVar[int] = 8
    codes: Tensor
    scales: Tensor
    table: Tensor | None = None

    @classmethod
    def of(cls, module: Any) -> EightBits | None:
        """What a `bitsandbytes.nn.Linear8bitLt` holds, as it was stored; None if its sizes are others."""
        scales = module.weight.SCB if module.state.SCB is None else module.state.SCB
        codes = module.weight.data
        if scales is None or codes.dtype != torch.int8 or codes.shape[0] % ROWS or codes.shape[1] % BLOCK:
            return None
        return cls(codes.contiguous(), scales.float().contiguous())

    def unpacked(self) -> Tensor:
        """The weight, `(out, in)` bfloat16: what the library computes with."""
        return (self.codes * self.scales.unsqueeze(-1) * (1 / 127)).bfloat16()


Packed = FourBits | EightBits


def collect(model: nn.Module) -> dict[str, Packed]:
    """The weights that bitsandbytes loaded in 4 or 8 bits, by the names of their modules; none of a large model."""
    kinds: dict[str, Any] = {"Params4bit": FourBits, "Int8Params": EightBits}
    modules = {name: m for name, m in model.named_modules() if type(getattr(m, "weight", None)).__name__ in kinds}
    if 2 * sum(m.in_features * m.out_features for m in modules.values()) > LARGEST:
        return {}
    found = {name: kinds[type(module.weight).__name__].of(module) for name, module in modules.items()}
    return {name: packed for name, packed in found.items() if packed is not None}


def attach(model: nn.Module, found: Mapping[str, Packed]) -> None:
    """Leaves them with the modules of the model that was unpacked, for a lean model to find."""
    for name, packed in found.items():
        setattr(model.get_submodule(name), ATTRIBUTE, packed)


def attached(modules: Sequence[nn.Module]) -> Packed | None:
    """What was left with these modules, below each other; None unless all have some, and of one kind."""
    found: list[Any] = [getattr(module, ATTRIBUTE, None) for module in modules]
    kind = type(found[0])
    if kind not in (FourBits, EightBits) or any(type(one) is not kind for one in found):
        return None
    if len(found) == 1:
        only: Packed = found[0]
        return only
    codes, scales = (torch.cat([getattr(one, name) for one in found]) for name in ("codes", "scales"))
    sizes = [len(one.codes) for one in found]
    # As with the fused weights, what the modules keep become views: nothing is held twice.
    for module, mine, own in zip(modules, codes.split(sizes), scales.split(sizes), strict=True):
        setattr(module, ATTRIBUTE, kind(mine, own, found[0].table))
    joined: Packed = kind(codes, scales, found[0].table)
    return joined
