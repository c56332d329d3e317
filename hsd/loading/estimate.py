"""What memory a family will take, before it is loaded; and what to leave out where that is too much.

Everything is counted from configurations (`shapes`): weights as they are stored, keys and values of one conversation
as long as the context, logits, the work of reading a prompt. What is measured after loading replaces the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hsd.config import Family, ModelSpec
from hsd.errors import HsdError
from hsd.loading.cache import on_disk
from hsd.loading.shapes import Shape, shape_of, stored_by
from hsd.memory import MemoryFit, ModelMemory
from hsd.planning import best_plan, with_priors

GB = 1e9
LEAST_CONTEXT = 512
"""A context is not made shorter than this to fit memory: a family that wants it is too large."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight in NF4 with double quantization: 4 bits, an 8-bit scale for 64 weights, a float for 256 scales."""

_WIDEST, _CHUNK = 16, 256  # tokens of a verifying pass, and of one that reads a prompt
_LOGIT_COPIES = 6  # logits, distributions of both sides, sorted copies for top-p, all float32
_SCORE_COPIES = 3  # attention scores, masked, softmax
_GRAPHS = 0.06 * GB  # what captured graphs and the workspaces of the matrix libraries take per model, on CUDA
_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SMALL = 8_000_000  # as in `source`: smaller models compute in float32 on a processor


@dataclass(frozen=True, slots=True)
class Place:
    """A device as far as memory is concerned.

    Args:
        name: in words.
        kind: "cuda", "mps" or "cpu".
        free, total: bytes.
        bf16: whether a processor has bf16 arithmetic.
        read_gbps: measured reading speed of a processor's memory, GB/s; 0 where not measured.
    """

    name: str
    kind: str
    free: float
    total: float
    bf16: bool = True
    read_gbps: float = 0.0


def fit(family: Family, place: Place, dtype: str | None = None) -> MemoryFit:
    """What of a family fits a place: the least valuable draft goes first, then the context shrinks.

    A processor unpacks 4- and 8-bit weights, which is faster; where the target fits only packed, all stay packed.

    Args:
        family: what is wanted.
        place: where to, and how much is free there.
        dtype: overrides the file's dtypes.
    """
    family = dataclasses.replace(family, models=tuple(stored_by(spec) for spec in family.models))
    result = _fit(family, place, dtype, packed=False)
    if not result.fits and place.kind != "cuda" and any(m.quantization != "none" for m in family.models):
        return _fit(family, place, dtype, packed=True)
    return result


def _fit(family: Family, place: Place, dtype: str | None, packed: bool) -> MemoryFit:
    shapes = {spec.name: shape_of(spec) for spec in family.models}
    specs = list(family.models)
    wanted = _context(family, shapes[family.target])
    context, dropped = wanted, dict[str, str]()
    before = _memory(specs, shapes, context, place, dtype, packed)
    now = before
    while _sum(now) > place.free and len(specs) > 1:
        worst = _least_valuable(specs, family.target, now)
        specs = [s for s in specs if s.name != worst]
        dropped[worst] = (
            f"the family wants {_sum(now) / GB:.1f} GB with it, and {place.free / GB:.1f} GB are free on {place.name}; "
            "it is the draft that is missed least"
        )
        now = _memory(specs, shapes, context, place, dtype, packed)
    if _sum(now) > place.free:
        context = _shorter(specs, shapes, context, place, dtype, packed)
        now = _memory(specs, shapes, context, place, dtype, packed)
    fits = _sum(now) <= place.free
    target = shapes[family.target]
    slow = None
    if place.kind == "cpu" and place.read_gbps and target is not None:
        slow = _weights(target, family.target_spec, place, dtype, packed) / GB / place.read_gbps
    result = MemoryFit(
        family=family.name,
        device=place.name,
        fits=fits,
        verdict="",
        models=tuple(now[0]),
        dropped=dropped,
        context=context,
        wanted_context=wanted,
        shared_gb=now[1] / GB,
        free_gb=place.free / GB,
        total_gb=place.total / GB,
        download_gb=sum(_download(s, shapes[s.name]) for s in family.models if not on_disk(s)) / GB,
        seconds_per_token=slow,
        packed=packed,
    )
    return dataclasses.replace(result, verdict=_verdict(result, _sum(before) / GB))


def measured(fit: MemoryFit, weights: Mapping[str, float], free: float) -> MemoryFit:
    """The estimate with measured weights in the place of estimated ones.

    Args:
        fit: the estimate.
        weights: model name -> bytes of its weights in memory; models that are not named were not loaded.
        free: bytes that are free now, with the weights in memory.
    """
    models = tuple(
        dataclasses.replace(m, weights_gb=weights[m.name] / GB, measured=True, known=True)
        for m in fit.models
        if m.name in weights
    )
    new = dataclasses.replace(fit, models=models, free_gb=(free + sum(weights.values())) / GB, fits=True)
    was = sum(m.weights_gb for m in fit.models if m.name in weights)
    now = sum(m.weights_gb for m in models)
    said = f"The weights take {now:.2f} GB on {fit.device}"
    said += f", {was:.2f} were estimated" if was else ""
    cache = sum(m.cache_gb for m in models)
    return dataclasses.replace(
        new, verdict=f"{said}; a conversation of {fit.context:,} tokens adds {cache:.2f} GB, the work about "
        f"{fit.shared_gb + sum(m.work_gb for m in models):.2f} GB."
        # A line for every sentence of it.
    )  # fmt: skip


def _context(family: Family, target: Shape | None) -> int:
    return min(family.context, target.positions) if target and target.positions else family.context


def _memory(
    specs: Sequence[ModelSpec],
    shapes: Mapping[str, Shape | None],
    context: int,
    place: Place,
    dtype: str | None,
    packed: bool,
) -> tuple[list[ModelMemory], float]:
    """Each model's memory, and bytes of the work that they take turns at."""
    models, shared = [], 0.0
    for spec in specs:
        shape = shapes[spec.name]
        if shape is None:
            models.append(ModelMemory(spec.name, 0.0, 0.0, known=False))
            continue
        size = _SIZES[_computes_in(shape, spec, place, dtype)]
        models.append(
            ModelMemory(
                spec.name,
                weights_gb=_weights(shape, spec, place, dtype, packed) / GB,
                cache_gb=_cache(shape, size, place, context) / GB,
                work_gb=(_WIDEST * shape.vocab * 4 * _LOGIT_COPIES + (_GRAPHS if place.kind == "cuda" else 0)) / GB,
            )
        )
        shared = max(shared, _reading(shape, spec, size, place, context, packed))
    return models, shared


def _sum(memory: tuple[list[ModelMemory], float]) -> float:
    return sum(m.total_gb for m in memory[0]) * GB + memory[1]


def _weights(shape: Shape, spec: ModelSpec, place: Place, dtype: str | None, packed: bool) -> float:
    """Bytes of a model's weights in memory."""
    size = _SIZES[_computes_in(shape, spec, place, dtype)]
    wide = (shape.embedding + shape.head + shape.other) * size
    if shape.stored and (place.kind == "cuda" or not shape.needs_gpu):
        return wide + shape.linear * shape.stored
    if spec.quantization == "none" or (place.kind != "cuda" and not packed):
        return wide + shape.linear * size
    if spec.quantization == "nf4":
        return wide + shape.linear * NF4_BYTES
    return wide + shape.linear + 4 * shape.rows


def _cache(shape: Shape, size: int, place: Place, context: int) -> float:
    """Bytes of keys and values; on a processor they are kept in float32."""
    number = shape.cached or (4 if place.kind == "cpu" else size)
    layers = shape.layers if shape.attending is None else shape.attending
    return 2 * layers * shape.kv_heads * shape.head_dim * context * number + shape.states


def _reading(shape: Shape, spec: ModelSpec, size: int, place: Place, context: int, packed: bool) -> float:
    """Bytes that one model works with while it reads a chunk of a prompt behind a full context."""
    attention = 4 if place.kind == "cpu" else size
    scores = _SCORE_COPIES * shape.heads * _CHUNK * context * attention
    widest = max(3 * shape.intermediate, shape.hidden + (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
    grown = _cache(shape, size, place, context) / 2  # a cache that grows by doubling holds old and new for a moment
    quantized = spec.quantization != "none" and (place.kind == "cuda" or packed)
    unpacked = shape.hidden * shape.intermediate * size if quantized else 0
    return scores + _CHUNK * widest * size + max(grown, unpacked)


def _computes_in(shape: Shape, spec: ModelSpec, place: Place, dtype: str | None) -> str:
    name = dtype or spec.dtype
    if name in _SIZES:
        return name
    if place.kind == "cpu" and (not place.bf16 or shape.parameters < _SMALL):
        return "float32"
    return "bfloat16"


def _least_valuable(specs: Sequence[ModelSpec], target: str, now: tuple[list[ModelMemory], float]) -> str:
    """The draft without which the best plan is forecast to lose least, by prior acceptances and bytes per pass.

    Every pass reads all weights once, which is what it costs at batch 1; a fixed part stands for the launches.
    """
    bytes_of = {m.name: m.weights_gb for m in now[0]}
    if any(not m.known for m in now[0]):
        return max((s.name for s in specs if s.name != target), key=lambda n: bytes_of[n])
    cost = {s.name: [bytes_of[s.name] + 0.2] for s in specs}

    def forecast(names: list[str]) -> float:
        costs = {n: cost[n] for n in sorted(names, key=lambda n: (n == target, cost[n][0]))}
        if len(costs) == 1:
            return cost[target][0]
        try:
            return best_plan(costs, with_priors(costs, {}))[1]
        except HsdError:  # a target that is cheaper than its drafts
            return cost[target][0]

    others = [s.name for s in specs]
    without = {n: forecast([o for o in others if o != n]) for n in others if n != target}
    return min(without, key=lambda n: (round(without[n], 6), -bytes_of[n]))


def _shorter(
    specs: Sequence[ModelSpec],
    shapes: Mapping[str, Shape | None],
    context: int,
    place: Place,
    dtype: str | None,
    packed: bool,
) -> int:
    """The longest context that fits, in steps of 256 tokens, at least `LEAST_CONTEXT`."""
    low, high = LEAST_CONTEXT // 256, context // 256
    while low < high:
        middle = (low + high + 1) // 2
        if _sum(_memory(specs, shapes, middle * 256, place, dtype, packed)) <= place.free:
            low = middle
        else:
            high = middle - 1
    return min(low * 256, context)


def _download(spec: ModelSpec, shape: Shape | None) -> float:
    """Bytes of a model's files on the hub, about: two for each parameter that is not stored in fewer."""
    if shape is None:
        return 0.0
    return 2.0 * (shape.parameters + shape.vision - shape.linear) + (shape.stored or 2.0) * shape.linear


def _verdict(fit: MemoryFit, wanted: float) -> str:
    unknown = [m.name for m in fit.models if not m.known]
    note = f" (without {', '.join(unknown)}: their size is known after the download)" if unknown else ""
    free = f"{fit.free_gb:.1f} GB free on {fit.device}"
    if not fit.fits:
        least = f"even without drafts and with a context of {fit.context:,} tokens"
        return f"does not fit: wants {fit.needed_gb:.1f} GB {least}, {free}{note}"
    if fit.dropped or fit.context < fit.wanted_context:
        left = [f"without {' and '.join(fit.dropped)}"] if fit.dropped else []
        left += [f"with a context of {fit.context:,} tokens"] if fit.context < fit.wanted_context else []
        said = f"fits {' and '.join(left)}: {fit.needed_gb:.1f} GB instead of {wanted:.1f}, {free}{note}"
    else:
        said = f"fits: {fit.needed_gb:.1f} GB, {free}{note}"
    if fit.seconds_per_token is not None and fit.seconds_per_token > SLOW:
        least = "more than" if fit.packed else "about"  # unpacking as they are read takes longer than reading
        said += f"; slow without a GPU: {least} {fit.seconds_per_token:.1f} s per token, decoded plainly"
    return said


SLOW = 0.15
"""Seconds per token beyond which a family is called slow: about as fast as one reads aloud."""
