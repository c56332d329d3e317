"""Weights and tokenizers from a folder: transformers, bitsandbytes and accelerate do the work."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hsd.config import ModelSpec
from hsd.errors import LoadError
from hsd.loading.explain import no_tokenizer, readable
from hsd.loading.hub import fetch
from hsd.loading.kinds import config_of, quantization_of
from hsd.loading.place import fast_bf16
from hsd.marks import Tokenizer
from hsd.runtime.llama_cpp.model import LlamaCppModel

_SMALL = 8_000_000
"""Parameters below which a model computes in float32 on a CPU: its step is overhead, and bf16 adds conversions."""

Share = Callable[[float], None]
"""Told which part of a model has been read, 0 to 1."""


def read_tokenizer(spec: ModelSpec, folder: Path | None = None) -> Any:
    """A model's tokenizer, from its folder; without one it is fetched first."""
    from transformers import AutoTokenizer

    with readable(spec):
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder or fetch(spec)), trust_remote_code=spec.trust_remote_code, local_files_only=True
        )
    if not _has_words(tokenizer):
        raise no_tokenizer(f"'{spec.name}' ({spec.path})")
    # Too long a prompt is the engine's to refuse, with the numbers; transformers would only warn.
    tokenizer.model_max_length = 1 << 30
    return tokenizer


def _has_words(tokenizer: Any) -> bool:
    """Whether there are tokens of text: without its files transformers makes a tokenizer of special tokens alone."""
    ids = set(tokenizer.get_vocab().values())
    return bool(ids - set(tokenizer.get_added_vocab().values()) - set(tokenizer.all_special_ids))


def read_model(
    spec: ModelSpec,
    device: str,
    dtype: str | None,
    folder: Path | None = None,
    *,
    packed: bool = False,
    share: Share = lambda _: None,
) -> Any:
    """A model's weights in memory.

    Args:
        spec: which, and how it is stored.
        device: torch device, or "balanced" over all GPUs.
        dtype: overrides the file's.
        folder: where its files are; without one they are fetched first.
        packed: keep 4- and 8-bit weights packed also where there are no fast kernels for them.
        share: told how far the reading is.

    Raises:
        LoadError: it cannot be read, or the memory does not suffice.
    """
    from transformers import AutoModelForCausalLM

    unpack = spec.quantization != "none" and not packed and device.partition(":")[0] in ("cpu", "mps")
    first = "cpu" if unpack else device
    with readable(spec), _watched(share), _hushed():
        files = Path(folder or fetch(spec))
        model, info = AutoModelForCausalLM.from_pretrained(
            str(files),
            dtype=_dtype(spec, first, dtype),
            # What is stored in 4 or 8 bits says itself how, unless it is contradicted, be it by None.
            **({} if quantization_of(config_of(files)) else {"quantization_config": _quantization(spec, first, dtype)}),
            # accelerate places the weights: on one device, or spread over all of them.
            device_map=first if first == "balanced" else {"": first},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=spec.trust_remote_code,
            # What is missing or of another shape is told below; on its own transformers draws it at random.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        complete(spec, model, info)
        model = language_part(model)
        # A folder may say itself that it is stored in 4 or 8 bits, whatever models.yaml says.
        small = spec.quantization != "none" or getattr(model, "is_quantized", False)
        if small and (unpack or (device == "cpu" and not packed)):
            # There are no fast 4- or 8-bit kernels here: stored small, computed wide.
            wide = dtype or (spec.dtype if spec.dtype != "auto" else None)
            computed = _torch_dtype(wide) if wide else cpu_dtype(model.num_parameters())
            model = model.dequantize().to(computed).to(device)
        elif device == "cpu" and dtype is None and spec.dtype == "auto" and not small:
            model = model.to(cpu_dtype(model.num_parameters()))
    return model


def complete(spec: ModelSpec, model: Any, info: Mapping[str, Any]) -> None:
    """Makes sure that every weight of a model came from its files, as finite numbers.

    Args:
        spec: which model.
        model: as transformers loaded it; tied weights are tied.
        info: transformers' report of the loading.

    Raises:
        LoadError: tensors are missing, have another shape, are not finite, or belong to a model with other layers.
    """
    buffers = {name for name, _ in model.named_buffers()}
    aside = ("model.vision_tower.", "model.multi_modal_projector.") if _sees_pictures(model) else ()
    missing = sorted(n for n in info["missing_keys"] if n not in buffers and not n.startswith(aside))
    other = sorted(entry for entry in info["mismatched_keys"] if not entry[0].startswith(aside))
    surplus = sorted(n for n in info["unexpected_keys"] if _has_no_place(model, n))
    if missing:
        count = sum(1 for _ in model.parameters())
        why = f"{len(missing)} of its {count} tensors {'are' if len(missing) > 1 else 'is'} missing: {_some(missing)}"
    elif other:
        name, stored, wanted = other[0]
        why = f"{name} has the shape {tuple(stored)} in its files, and config.json wants {tuple(wanted)}"
        why += f" ({len(other) - 1} more differ)" if len(other) > 1 else ""
    elif more := next((n for n in sorted(info["unexpected_keys"]) if _of_another_layer(model, n)), None):
        why = f"its files hold {more}, and config.json says that it has fewer layers"
    elif surplus:
        why = f"config.json says that it has no biases, and its files hold {_some(surplus)}"
    elif damaged := next((n for n, p in model.named_parameters() if not _finite(p)), None):
        why = f"{damaged} holds values that are no finite numbers"
    else:
        return
    raise LoadError(f"'{spec.name}' ({spec.path}) cannot be loaded: {why}.", "Restore its files, or fetch it anew.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _has_no_place(model: Any, name: str) -> bool:
    """Whether a tensor of the files is a bias of a layer that was built without one."""
    try:
        layer = model.get_submodule(name.removesuffix(".bias"))
    except AttributeError:
        return False
    return name.endswith(".bias") and isinstance(layer, torch.nn.Linear) and layer.bias is None


def _of_another_layer(model: Any, name: str) -> bool:
    """Whether a tensor of the files belongs to a layer behind the last one. Some have one that drafts, and say so."""
    config = model.config.get_text_config()
    drafting = int(getattr(config, "num_nextn_predict_layers", None) or 0)
    for found in re.finditer(r"\.(\d+)\.", name):
        try:
            layers = model.get_submodule(name[: found.start()])
        except AttributeError:
            return False
        if isinstance(layers, torch.nn.ModuleList):
            return int(found[1]) >= len(layers) + drafting
    return False


def _finite(weights: torch.Tensor) -> bool:
    # A sum reads the weights once and copies nothing; it is not finite if one of them is not.
    if not weights.is_floating_point() or weights.device.type == "meta":
        return True
    return bool(weights.detach().sum(dtype=torch.float32).isfinite())


def _sees_pictures(model: Any) -> bool:
    return type(model).__name__ == "Gemma3ForConditionalGeneration"


def language_part(model: Any) -> Any:
    """The text model of one that also sees pictures (Gemma 3): the rest is given back, nobody would use it."""
    if not _sees_pictures(model):
        return model
    from transformers import Gemma3ForCausalLM

    with torch.device("meta"):
        text = Gemma3ForCausalLM(model.config.text_config)
    text.model, text.lm_head = model.model.language_model, model.lm_head
    text.generation_config = model.generation_config
    for name in ("hf_device_map", "quantization_method", "hf_quantizer", "is_quantized"):
        if hasattr(model, name):
            setattr(text, name, getattr(model, name))
    if getattr(model.config, "quantization_config", None) is not None:
        text.config.quantization_config = model.config.quantization_config
    return text.eval()


def held_bytes(model: Any) -> int:
    """Bytes of a model's weights in memory, with the scales that bitsandbytes keeps beside them."""
    if isinstance(model, LlamaCppModel):
        return model.weight_bytes
    seen: dict[int, int] = {}

    def count(value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.device.type != "meta":
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()

    for parameter in (*model.parameters(), *model.buffers()):
        count(parameter)
        count(getattr(parameter, "SCB", None))
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            for name in ("absmax", "code", "offset"):
                count(getattr(state, name, None))
            state = getattr(state, "state2", None)
    return sum(seen.values())


def cpu_dtype(parameters: int) -> torch.dtype:
    """What a model of this size computes in on this CPU when nobody said.

    torch's bfloat16 kernels cost a small model more than they save.
    """
    return torch.bfloat16 if fast_bf16() and parameters >= _SMALL else torch.float32


def _dtype(spec: ModelSpec, device: str, override: str | None) -> Any:
    name = override or spec.dtype
    if name != "auto":
        return _torch_dtype(name)
    return "auto" if device == "cpu" else torch.bfloat16


def _torch_dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise LoadError(f"The dtype '{name}' is not known.", f"Use one of: {', '.join(known)}.")
    return known[name]


def _quantization(spec: ModelSpec, device: str, dtype: str | None) -> Any:
    if spec.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if spec.quantization == "int8":
        # It would say on every pass that it computes in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    name = dtype or (spec.dtype if spec.dtype != "auto" else "float32" if device == "cpu" else "bfloat16")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_torch_dtype(name),
    )


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without what libraries say of weights that are unpacked on purpose, of kernels that would not be used, and of
    missing tensors, which are told as an error."""
    loggers = [logging.getLogger(name) for name in ("bitsandbytes", "transformers.integrations.bitsandbytes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    reading = logging.getLogger("transformers.modeling_utils")  # says more at another level, so it keeps its own
    reading.addFilter(_no_report)
    try:
        yield
    finally:
        reading.removeFilter(_no_report)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


@contextlib.contextmanager
def _watched(share: Share) -> Iterator[None]:
    """transformers' own progress bar counts tensors on a terminal; here it is told to whoever asked."""
    from transformers.utils import logging as progress

    was = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    hook = getattr(progress, "set_tqdm_hook", None)
    before = hook(lambda factory, args, options: _Bar(factory, args, options, share)) if hook else None
    try:
        yield
    finally:
        if hook:
            hook(before)
        if was:
            progress.enable_progress_bar()


class _Bar:
    """Stands for a progress bar over tensors: iterates, and tells how far it is."""

    def __init__(self, factory: Any, args: tuple[Any, ...], options: dict[str, Any], share: Share) -> None:
        self._inner = factory(*args, **options)
        self._items: Iterable[Any] = args[0] if args else options.get("iterable", ())
        self._share = share

    def __iter__(self) -> Iterator[Any]:
        items = list(self._items)
        for done, item in enumerate(items, 1):
            yield item
            if done % 16 == 0 or done == len(items):
                self._share(done / len(items))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()


def check_tokenizer(spec: ModelSpec, tokenizer: Tokenizer, folder: Path | None = None) -> None:
    """A draft that brings a tokenizer must bring the target's: ids are handed from model to model.

    Raises:
        LoadError: it does not.
    """
    try:
        own = read_tokenizer(spec, folder)
    except LoadError:
        return  # a folder of weights alone: its rows are compared with the target's later
    mine, theirs = own.get_vocab(), tokenizer.get_vocab()
    different = sum(1 for token, place in mine.items() if theirs.get(token, place) != place)
    missing = sum(1 for token in theirs if token not in mine)
    if different or missing > len(theirs) // 100:
        raise LoadError(
            f"Left out: its tokenizer is not the target's ({different} tokens have other ids, {missing} are missing).",
            "Models of one family must share a vocabulary.",
        )
