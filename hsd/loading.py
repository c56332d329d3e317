"""Where models come from: a hub or a folder, through transformers, bitsandbytes and accelerate.

The same path loads every family, the built-in one too. A draft that cannot be used is left out with its reason; only
the target is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hsd.config import Family, ModelSpec
from hsd.errors import HsdError, LoadError
from hsd.runtime import LanguageModel, wrap
from hsd.text import Tokenizer
from hsd.types import LOOKUP, Dropped, LoadProgress

Progress = Callable[[LoadProgress], None]

_SMALL = 8_000_000
"""Parameters below which a model computes in float32 on a CPU: its step is overhead, and bf16 adds conversions to it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A family in memory.

    Args:
        family: what it was made from.
        models: name -> model, cheapest first, the target last.
        tokenizer: the family's tokenizer.
        vocab: token ids that may appear, 0 to vocab - 1.
        end_ids: tokens that end a reply.
        parameters: name -> number of parameters.
        stored: name -> how its weights are stored ("nf4", "int8", or the dtype).
        dropped: drafts that were left out.
        notes: sentences a person should know.
    """

    family: Family
    models: Mapping[str, LanguageModel]
    tokenizer: Tokenizer
    vocab: int
    end_ids: tuple[int, ...]
    parameters: Mapping[str, int]
    stored: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()


def load(family: Family, device: str = "auto", dtype: str | None = None, progress: Progress | None = None) -> Loaded:
    """Loads a family: the target first, then its drafts.

    Args:
        family: what to load.
        device: "auto", or a torch device that overrides the file's.
        dtype: overrides the file's dtypes.
        progress: told what is being loaded.

    Raises:
        LoadError: the target or its tokenizer cannot be loaded.
    """
    tell = progress or (lambda _: None)
    total = float(len(family.models))
    target = family.target_spec
    tell(LoadProgress(target.name, "loading the tokenizer", 0, total))
    tokenizer = _tokenizer(target)
    ordered = [target, *(m for m in family.models if m is not target)]
    loaded: dict[str, Any] = {}
    dropped: list[Dropped] = []
    for done, spec in enumerate(ordered):
        tell(LoadProgress(spec.name, f"loading {spec.path}", done, total))
        try:
            loaded[spec.name] = _model(spec, _device(spec, device), dtype)
            if spec is not target:
                _check_tokenizer(spec, tokenizer)
        except LoadError as error:
            if spec is target:
                raise
            loaded.pop(spec.name, None)
            dropped.append(Dropped(spec.name, str(error)))
    stored = {s.name: s.quantization for s in family.models if s.quantization != "none"}
    tell(LoadProgress("", "checking the models", total, total))
    models = {spec.name: loaded[spec.name] for spec in family.models if spec.name in loaded and spec is not target}
    return assemble(family, {**models, target.name: loaded[target.name]}, tokenizer, stored, dropped)


def assemble(
    family: Family,
    models: Mapping[str, Any],
    tokenizer: Tokenizer,
    stored: Mapping[str, str] | None = None,
    dropped: Sequence[Dropped] = (),
) -> Loaded:
    """A family of transformers models that are in memory, the target last; drafts that do not fit are left out.

    Raises:
        LoadError: the target cannot be used.
    """
    out = list(dropped)
    vocab = max(tokenizer.get_vocab().values()) + 1
    *drafts, target = models
    context = min([family.context, *(_positions(models[name]) for name in (target,))])
    wrapped = {target: wrap(target, models[target], context)}
    # The target's own rows bound the vocabulary: what it cannot emit, no reply holds.
    vocab = min(vocab, wrapped[target].vocab)
    notes = _notes(family, context, wrapped[target])
    for name in drafts:
        reason = _unusable(name, models[name], context, vocab)
        if reason is None:
            model = wrap(name, models[name], context)
            if model.cuttable:
                wrapped[name] = model
                continue
            reason = "its cache cannot be cut back after a rejection (a recurrent or hybrid model)"
        out.append(Dropped(name, f"Left out: {reason}."))
    order = [n for n in models if n in wrapped]
    return Loaded(
        family=family,
        models={name: wrapped[name] for name in order},
        tokenizer=tokenizer,
        vocab=vocab,
        end_ids=_end_ids(models[target], tokenizer),
        parameters={name: _parameters(models[name]) for name in order},
        stored={name: (stored or {}).get(name, wrapped[name].dtype) for name in order},
        dropped=tuple(out),
        notes=notes,
    )


def _notes(family: Family, context: int, target: LanguageModel) -> tuple[str, ...]:
    notes = []
    if context < family.context:
        notes.append(f"The context is {context} tokens: '{target.name}' was not made for {family.context}.")
    if not target.cuttable:
        notes.append(
            f"'{target.name}' decodes plainly: its cache cannot be cut back after a rejection, so drafts cannot help."
        )
    return tuple(notes)


def _unusable(name: str, model: Any, context: int, vocab: int) -> str | None:
    """Why a draft cannot stand under the target, in words; None if it can."""
    if name == LOOKUP:
        return "the name 'lookup' is taken by the level without a model"
    rows = model.get_output_embeddings().weight.shape[0]
    if rows < vocab:
        return f"it knows {rows} tokens, the target {vocab}; the vocabularies differ"
    if _positions(model) < context:
        return f"it was made for {_positions(model)} positions, the family's context is {context}"
    return None


def _positions(model: Any) -> int:
    """Longest sequence that a model was made for; very many where its configuration sets no bound."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)


def _parameters(model: Any) -> int:
    # bitsandbytes packs two 4-bit weights into a byte; transformers knows how to count them.
    return int(model.num_parameters()) if hasattr(model, "num_parameters") else sum(p.numel() for p in model.parameters())


def _end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    ends: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        ends.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return tuple(sorted(ends))


def _check_tokenizer(spec: ModelSpec, tokenizer: Tokenizer) -> None:
    """A draft that brings a tokenizer must bring the target's: ids are handed from model to model.

    Raises:
        LoadError: it does not.
    """
    try:
        own = _tokenizer(spec)
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


def source(spec: ModelSpec) -> str:
    """Where the weights are: a folder or a hub name.

    Raises:
        LoadError: the folder does not exist or holds no model.
    """
    if spec.path.startswith("builtin:"):
        folder = Path(__file__).parent / "builtin" / "weights" / spec.path.removeprefix("builtin:")
    elif spec.path.startswith((".", "/", "~")):
        folder = Path(spec.path).expanduser()
    else:
        return spec.path
    if not (folder / "config.json").is_file():
        raise LoadError(f"The weights of '{spec.name}' are missing: {folder} holds no model.", "Check its path.")
    return str(folder)


def _device(spec: ModelSpec, override: str) -> str:
    wanted = override if override != "auto" else spec.device
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _tokenizer(spec: ModelSpec) -> Any:
    from transformers import AutoTokenizer

    with _readable(spec):
        return AutoTokenizer.from_pretrained(
            source(spec), revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )


def _model(spec: ModelSpec, device: str, dtype: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    with _readable(spec), _quiet():
        model = AutoModelForCausalLM.from_pretrained(
            source(spec),
            revision=spec.revision,
            dtype=_dtype(spec, device, dtype),
            quantization_config=_quantization(spec, device, dtype),
            # accelerate places the weights: on one device, or spread over all of them.
            device_map=device if device == "balanced" else {"": device},
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
        )
    if device == "cpu" and spec.quantization != "none":
        # There are no fast 4- or 8-bit kernels here: stored small, computed wide.
        model = model.dequantize()
        model = model.to(_torch_dtype(dtype or "float32"))
    if device == "cpu" and dtype is None and spec.dtype == "auto" and spec.quantization == "none":
        model = model.to(cpu_dtype(_parameters(model)))
    return model


def cpu_dtype(parameters: int) -> torch.dtype:
    """What a model of this size computes in on this CPU when nobody said."""
    fast_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast_bf16 and parameters >= _SMALL else torch.float32


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
        return BitsAndBytesConfig(load_in_8bit=True)
    name = dtype or (spec.dtype if spec.dtype != "auto" else "float32" if device == "cpu" else "bfloat16")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_torch_dtype(name),
    )


@contextlib.contextmanager
def _quiet() -> Any:
    """transformers' own progress bar is about tensors; people are told about models."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _readable(spec: ModelSpec) -> Any:
    """What can go wrong while a model is fetched and read, in one sentence each."""
    from huggingface_hub import errors as hub

    name = f"'{spec.name}' ({spec.path})"
    try:
        yield
    except HsdError:
        raise
    except hub.GatedRepoError as error:
        raise LoadError(
            f"{name} is gated: the hub gives it only to people who accepted its terms.",
            f"Ask for access at https://huggingface.co/{spec.path}, then run 'hf auth login'.",
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise LoadError(f"There is no {name} on the hub.", "Check its path in models.yaml.") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError) as error:
        raise LoadError(
            f"{name} is not on this disk and the hub does not answer.", "Check the network, or give a local folder."
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise LoadError(f"{name} does not fit the memory.", "Choose a smaller family or a quantization.") from error
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise LoadError(f"{name} cannot be loaded: {first}.", "Check its path and files.") from error
