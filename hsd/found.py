"""Families of the GGUF models that other programs keep on this computer: which agree, and what to do with them.

Models whose vocabularies agree token by token make a group. Of each group a family is offered: the largest model that
fits this machine is its target, smaller ones are its drafts. Nothing is copied, and no folder is written to.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hsd import gguf
from hsd.config import Family, ModelSpec
from hsd.errors import ConfigError, HsdError, LoadError
from hsd.loading.model_folders import ModelFile, ModelFolder, model_files, model_folders
from hsd.machine import memory_fit
from hsd.memory import MemoryFit
from hsd.types import check_name

CONTEXT = 8192
"""Context of a family that is offered, where its target was made for as much."""

MOST_DRAFTS = 3

CHEAP = 0.6
"""A draft's file has at most this part of the target's bytes: a pass reads all of them, so a larger one cannot pay."""

CHEAP_COPY = 0.5
"""The same weights in fewer bits may be a draft from this part of the target's bytes on, where no smaller model is
there. At half the bytes, proposals of which nine in ten are accepted make (1 + 0.9) / (1 + 0.5) = 1.27 of the speed."""

_FEWER = 0.9  # models whose numbers of weights differ by less hold the same weights in other formats
_APART = 2.0  # each draft has at least so many times the weights of the one below it
_BITS = 4.0  # of several files of one draft the smallest with at least so many bits per weight
_READS_BOTH_WAYS = ("bert", "t5", "clip", "wavtokenizer", "whisper")  # parts of names of architectures
_QUANTIZED = re.compile(r"[-._ ](?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|B?F16|F32|FP16)$", re.I)
_UNREADABLE = (HsdError, OSError, ValueError, OverflowError, MemoryError, ArithmeticError, TypeError)


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on this disk.

    Args:
        path: its file, the first one where it is split.
        program: whose folder it lies in.
        name: what that program calls it.
        size: bytes of all its files.
        parameters: how many weights it has.
        context: longest sequence that it was made for; 0 where nothing is said.
        label: its size in the maker's words, or "".
        template: whether it has a chat template.
        use: "target", "draft" or "unused".
        why: why it is unused.
    """

    path: Path
    program: str
    name: str
    size: int
    parameters: int
    context: int
    label: str
    template: bool
    use: str = "unused"
    why: str = ""


@dataclass(frozen=True, slots=True)
class FoundFamily:
    """A family that is offered. `models`: all of its group, the largest first; `fit`: what it needs of the memory."""

    family: Family
    models: tuple[FoundModel, ...]
    fit: MemoryFit

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs whose files are used."""
        return tuple(dict.fromkeys(m.program for m in self.models if m.use != "unused"))

    @property
    def size(self) -> int:
        """Bytes of the files that are used."""
        return sum(m.size for m in self.models if m.use != "unused")

    def entry(self) -> dict[str, Any]:
        """What stands in a models.yaml below the family's name."""
        models = {model.name: {"path": model.path} for model in self.family.models}
        return {"title": self.family.title, "context": self.family.context, "models": models}


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Args:
        families: one of each group of models, those with the largest targets first.
        left_out: files that no family uses as (path, program, reason).
        notes: sentences about folders that were not read, or not wholly.
    """

    families: tuple[FoundFamily, ...]
    left_out: tuple[tuple[Path, str, str], ...]
    notes: tuple[str, ...]

    def yaml(self) -> str:
        """The families as a models.yaml; empty where there are none."""
        if not self.families:
            return ""
        entries = {"families": {found.family.name: found.entry() for found in self.families}}
        return str(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=1000))

    def values(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "families": [
                {
                    "name": found.family.name,
                    **found.entry(),
                    "fits": found.fit.verdict,
                    "files": [{**dataclasses.asdict(model), "path": str(model.path)} for model in found.models],
                }
                for found in self.families
            ],
            "left_out": [{"path": str(path), "program": program, "why": why} for path, program, why in self.left_out],
            "notes": list(self.notes),
        }


def found_families(folders: Sequence[ModelFolder] | None = None, also_free_gb: float = 0.0) -> Found:
    """Looks through the folders of LM Studio, Ollama, llama.cpp and the Hub's cache. Seconds when it is first called.

    Imports torch, which knows how much memory there is. Headers are read, weights are not.

    Args:
        folders: where to look; None is everywhere that these programs use.
        also_free_gb: memory that will have been given back by then, as in `memory_fit`.
    """
    notes: list[str] = []
    left_out: list[tuple[Path, str, str]] = []
    models: list[FoundModel] = []
    seen: set[tuple[int, int]] = set()
    for folder in model_folders() if folders is None else folders:
        for file in model_files(folder, notes):
            try:
                status = file.path.stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                model = _read(file, status)
            except _UNREADABLE as error:
                left_out.append((file.path, file.program, _reason(error)))
                continue
            if isinstance(model, str):
                if model:
                    left_out.append((file.path, file.program, model))
            else:
                models.append(model)
    families: list[FoundFamily] = []
    for group in _groups(models):
        models, fit, family = _offer(group, {f.family.name for f in families}, also_free_gb)
        if family is not None and fit is not None:
            families.append(FoundFamily(family, tuple(models), fit))
        left_out += [(m.path, m.program, m.why) for m in models if m.use == "unused"]
    families.sort(key=lambda found: -max(m.parameters for m in found.models if m.use == "target"))
    return Found(tuple(families), tuple(left_out), tuple(notes))


def _reason(error: BaseException) -> str:
    said = error.message if isinstance(error, HsdError) else getattr(error, "strerror", None) or str(error)
    return f"it cannot be read: {said.rstrip('.')}" if not isinstance(error, LoadError) else said.rstrip(".")


def _read(file: ModelFile, status: os.stat_result) -> FoundModel | str:
    """The model in a file, or why it is none; "" for a further file of a split one."""
    if file.broken or not stat.S_ISREG(status.st_mode):  # a pipe would never be read to its end
        return file.broken or "it is no regular file"
    try:
        str(file.path).encode("utf-8")
    except UnicodeEncodeError:
        return "its path is no text, so no models.yaml can name it"
    split = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.gguf", file.path.name)
    if split and int(split[2]) > 1:  # its first file stands for it
        first = file.path.with_name(f"{split[1]}-00001-of-{split[3]}.gguf")
        return "" if first.exists() else f"it is a part of a model, and {first.name} is missing"
    gguf.parts(file.path)  # a part may vanish while the first file stays as it was
    described = _described(file.path, status.st_size, status.st_mtime_ns)
    if isinstance(described, str):
        return described
    size, parameters, context, label, template = described
    name = re.sub(r"-00001-of-\d{5}$", "", file.name)
    return FoundModel(file.path, file.program, name, size, parameters, context, label, template)


@functools.lru_cache(maxsize=2000)
def _described(path: Path, size: int, changed: int) -> tuple[int, int, int, str, bool] | str:
    """Size, parameters, context, label, whether there is a template; or why it is no chat model. Kept per file."""
    header = gguf.Header(path)
    reason = _no_language_model(header)
    if reason:
        return reason
    files = gguf.parts(path)
    headers = [header, *(gguf.Header(file) for file in files if file.name != path.name)]
    tensors = [tensor for one in headers for tensor in one.tensors]
    if not tensors:
        return "it holds a vocabulary and no weights"
    if not any(tensor.name == "token_embd.weight" for tensor in tensors):
        return "it is only a part of a model: it has no token embedding"
    whole = sum(file.stat().st_size for file in files)
    if whole < sum(tensor.size for tensor in tensors):
        return "it is cut off: its header promises more than the file holds"
    label = str(header.values.get("general.size_label", ""))
    template = bool(header.values.get("tokenizer.chat_template"))
    return whole, sum(tensor.weights for tensor in tensors), header.positions, label, template


def _no_language_model(header: gguf.Header) -> str:
    """Why a file cannot write text from left to right, or be a draft for one that does; empty if it can."""
    kind, architecture = str(header.values.get("general.type", "model")), header.architecture
    one_way = header.get("attention.causal", True) is not False
    reasons = {
        "it is a LoRA adapter": kind == "adapter" or "adapter.type" in header.values,
        "it is a projector of pictures or sound": kind == "mmproj" or "mmproj" in header.path.name.lower(),
        "it is an importance matrix": "imatrix" in (kind, architecture),
        "it is an embedding model": int(header.get("pooling_type", 0) or 0) > 0,
        "it is no model that writes text from left to right": not one_way
        or any(part in architecture for part in _READS_BOTH_WAYS),
        "it has no vocabulary": not header.vocabulary()[0],
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


@functools.lru_cache(maxsize=4000)
def _vocabulary(path: Path, size: int, changed: int, count: int | None) -> tuple[int, str]:
    return gguf.header(path).vocabulary(count)


def _tokens(model: FoundModel, count: int | None = None) -> tuple[int, str]:
    status = model.path.stat()
    return _vocabulary(model.path, status.st_size, status.st_mtime_ns, count)


def _agree(one: FoundModel, other: FoundModel) -> bool:
    """Whether all tokens are the same at the same ids; at the end one may have up to a hundredth more."""
    first, second = _tokens(one), _tokens(other)
    if first[0] == second[0]:
        return first[1] == second[1]
    fewer, more = sorted((first[0], second[0]))
    return (more - fewer) * 100 <= more and _tokens(one, fewer)[1] == _tokens(other, fewer)[1]


def _groups(models: Iterable[FoundModel]) -> list[list[FoundModel]]:
    """Models whose vocabularies agree, the largest of each group first."""
    groups: list[list[FoundModel]] = []
    for model in sorted(models, key=lambda m: (-m.parameters, -m.size, str(m.path))):
        try:
            home = next((group for group in groups if all(_agree(model, other) for other in group)), None)
        except _UNREADABLE:
            continue  # it vanished meanwhile
        if home is None:
            groups.append([model])
        else:
            home.append(model)
    return groups


def _offer(
    group: list[FoundModel], taken: set[str], also_free_gb: float
) -> tuple[list[FoundModel], MemoryFit | None, Family | None]:
    """What each model of a group is used for, and their family; without one where none of them can be a target."""
    reasons: dict[Path, str] = {}
    target = None
    for model in group:
        if not model.template:
            reasons[model.path] = "it has no chat template, so it is no target"
            continue
        fit = memory_fit(_family(model, [], taken), also_free_gb=also_free_gb)
        if fit.fits:
            target = model
            break
        reasons[model.path] = f"it is too large: it wants {fit.needed_gb:.1f} GB, {fit.free_gb:.1f} GB are free"
    if target is None:
        return [dataclasses.replace(model, why=reasons[model.path]) for model in group], None, None
    # A model without a template may be a draft; what is too large for a target may be none.
    rest = [m for m in group if m is not target and (m.path not in reasons or not m.template)]
    drafts = _drafts(target, rest, reasons)
    family = _family(target, drafts, taken)
    uses = {target.path: "target", **{draft.path: "draft" for draft in drafts}}
    models = [
        dataclasses.replace(m, use=uses.get(m.path, "unused"), why="" if m.path in uses else reasons[m.path])
        for m in group
    ]
    return models, memory_fit(family, also_free_gb=also_free_gb), family


def _drafts(target: FoundModel, others: list[FoundModel], reasons: dict[Path, str]) -> list[FoundModel]:
    """Drafts under a target, the smallest first; writes down why the others are none."""
    context = _context(target)
    smaller, copies = list[FoundModel](), list[FoundModel]()
    for model in others:
        if 0 < model.context < context:
            reasons[model.path] = f"it was made for {model.context:,} tokens, the family's context is {context:,}"
        elif model.parameters >= _FEWER * target.parameters:
            reasons[model.path] = f"the target is {target.name}, and this one is not smaller"
            if model.size <= CHEAP_COPY * target.size:
                copies.append(model)
        elif model.size > CHEAP * target.size:
            reasons[model.path] = f"a pass of it costs too much of one of {target.name} to draft for it"
        else:
            smaller.append(model)
    chosen = list[FoundModel]()
    for model in _one_of_each(smaller or copies[-1:], reasons):
        if chosen and model.parameters < _APART * chosen[-1].parameters:
            reasons[model.path] = f"{chosen[-1].name} is a draft of nearly its size"
        elif len(chosen) == MOST_DRAFTS:
            reasons[model.path] = f"there are {MOST_DRAFTS} drafts without it"
        else:
            chosen.append(model)
    return chosen


def _one_of_each(models: list[FoundModel], reasons: dict[Path, str]) -> list[FoundModel]:
    """One file of each number of weights, the smallest number first."""
    kinds: list[list[FoundModel]] = []
    for model in sorted(models, key=lambda m: (m.parameters, m.size)):
        if kinds and model.parameters * _FEWER <= kinds[-1][0].parameters:
            kinds[-1].append(model)
        else:
            kinds.append([model])
    chosen = []
    for kind in kinds:
        fine = sorted((m for m in kind if 8 * m.size >= _BITS * m.parameters), key=lambda m: m.size)
        best = fine[0] if fine else max(kind, key=lambda m: m.size)
        chosen.append(best)
        for model in kind:
            if model is not best:
                reasons[model.path] = f"{best.name} is the draft of its size"
    return chosen


def _context(target: FoundModel) -> int:
    return min(CONTEXT, target.context) if target.context >= 16 else CONTEXT


def _family(target: FoundModel, drafts: list[FoundModel], taken: set[str]) -> Family:
    specs: list[ModelSpec] = []
    for model in (*drafts, target):
        name = _distinct(_label(model), {spec.name for spec in specs})
        specs.append(ModelSpec(name, str(model.path)))
    plain = _QUANTIZED.sub("", target.name)
    name = _distinct(re.sub(r"[^\w.+-]+", "-", plain).strip("-.").lower() or "found", taken)
    return Family(name, tuple(specs), specs[-1].name, f"{target.name} ({target.program})", _context(target))


def _label(model: FoundModel) -> str:
    """A short name for plans: the size in the maker's words, or counted."""
    try:
        if re.fullmatch(r"[\w.-]*\d[\w.-]*[BbMm]", model.label):
            return check_name(model.label.lower())
    except ConfigError:
        pass
    millions = model.parameters / 1e6
    return (
        f"{millions / 1000:.1f}b".replace(".0b", "b")
        if millions >= 1000
        else f"{max(millions, 0.1):.1f}m".replace(".0m", "m")
    )


def _distinct(name: str, taken: set[str]) -> str:
    return next(n for n in (name, *(f"{name}-{at}" for at in range(2, 10_000))) if n not in taken)
