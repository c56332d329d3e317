"""`models.yaml` to typed families. An unknown key, a wrong type or a missing target is an error with a hint.

Knows nothing of torch: the page and the command line read it before anything heavy is imported.
"""

from __future__ import annotations

import codecs
import dataclasses
import datetime
import difflib
import os
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from hsd.errors import ConfigError
from hsd.gguf import is_gguf
from hsd.types import LOOKUP, check_name

T = TypeVar("T")

Quantization = Literal["none", "nf4", "int8"]
CopyFormat = Literal[
    "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "q8_0",
    "iq4_nl", "iq4_xs",
]  # fmt: skip
Overflow = Literal["refuse", "drop"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of a family. docs/models.md says what each key means to a person.

    Args:
        name: what plans and pages call it.
        path: a hub name (`Qwen/Qwen3-8B`), a folder, a `.gguf` file, or `builtin:NAME` for the weights that come with
            the package.
        file: of a hub name or a folder with GGUF files, which one: a name or a pattern like `*Q4_K_M.gguf`.
        revision: commit, tag or branch on the hub.
        quantization: "none", "nf4" (4 bit, double quantization) or "int8", by bitsandbytes; with `of` one of
            `CopyFormat`.
        dtype: "auto", "float32", "bfloat16" or "float16"; what is computed in, and stored unless quantized.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or "balanced" (spread over all GPUs).
        trust_remote_code: run Python code that comes with the model; off unless set.
        of: name of the GGUF model of the family that this one is a compressed copy of; its path is that model's.
        gpu_layers: of a GGUF model, how many layers go to the GPU: "auto" as many as fit, a number, -1 for all.
        exact: of a GGUF model, whether its rows must not depend on the width of a pass.
    """

    name: str
    path: str
    file: str | None = None
    revision: str | None = None
    quantization: str = "none"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    of: str | None = None
    gpu_layers: int | Literal["auto"] = "auto"
    exact: bool = False

    @property
    def gguf(self) -> bool:
        """Whether it is said to be a GGUF file; a folder may hold one without being told so."""
        return self.file is not None or is_gguf(os.path.basename(self.path)) or self.path.startswith("builtin:")


@dataclass(frozen=True, slots=True)
class Family:
    """Models with one vocabulary, cheapest first.

    Args:
        name: its name on the command line.
        models: cheapest first.
        target: name of the model whose tokens the reply is made of; the last one if not given.
        title: one line for people.
        context: longest prompt plus reply in tokens.
        overflow: a prompt that does not fit is refused with the numbers, or the oldest turns are dropped.
        system: text of a system message that is put before a conversation without one.
        license: licence of the weights, in words.
        memory_gb: memory the whole family wants, for people; 0 where nobody has said.
        examples: prompts to start with.
        llama_cpp: the file's folder with a build of llama.cpp; empty where it names none.
    """

    name: str
    models: tuple[ModelSpec, ...]
    target: str = ""
    title: str = ""
    context: int = 4096
    overflow: Overflow = "refuse"
    system: str = ""
    license: str = ""
    memory_gb: float = 0.0
    examples: tuple[str, ...] = ()
    llama_cpp: str = ""

    @property
    def target_spec(self) -> ModelSpec:
        return next(m for m in self.models if m.name == self.target)


_MOST_BYTES = 1_000_000
"""A models.yaml has far less. What has more is another file."""


class _Strict(yaml.SafeLoader):
    """YAML as it is, but every key is the text that stands there (not `1.50` as 1.5, or `on` as True), and one that
    stands twice in one mapping is an error: the first would be lost unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, if no key stands in it twice."""
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag in _PLAIN:
                key_node.tag = "tag:yaml.org,2002:str"
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands there twice", key_node.start_mark)
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)


_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "timestamp")}


def default_path() -> Path:
    """The `models.yaml` in use: $HSD_MODELS, else the checkout's, else the package's own copy."""
    if os.environ.get("HSD_MODELS"):
        return Path(os.path.expanduser(os.environ["HSD_MODELS"]))
    here = Path(__file__).resolve().parent
    checkout = here.parent / "models.yaml"
    return checkout if checkout.exists() else here / "models.yaml"


def load_families(path: str | os.PathLike[str] | None = None) -> dict[str, Family]:
    """All families of a file, in its order.

    Raises:
        ConfigError: the file is missing, is no YAML, or says something impossible; the sentence names the place.
    """
    file = Path(os.path.expanduser(path)) if path is not None else default_path()
    data = _parsed(_text(file), file)
    if not isinstance(data, dict) or not isinstance(data.get("families"), dict) or not data["families"]:
        raise ConfigError(f"{file} holds no families.", "It must begin with 'families:' and name at least one.")
    _no_unknown(data, {"families", "llama_cpp"}, str(file))
    folder = _checked(data.get("llama_cpp", ""), str, "llama_cpp", str(file))
    if folder.startswith("."):  # meant beside the file, as paths of models are
        folder = os.path.realpath(file.parent / folder)
    families = {str(name): _family(str(name), value, file) for name, value in data["families"].items()}
    return {name: dataclasses.replace(family, llama_cpp=folder) for name, family in families.items()}


def _text(file: Path) -> str:
    """The file's text: UTF-8, with a byte order mark or without, or what else a byte order mark says."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.",
            "Give the path of a models.yaml, or restore it.",
        ) from error
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{file} is larger than 1 MB, which no models.yaml is.", "Give the path of a models.yaml.")
    # That of UTF-32 begins with that of UTF-16.
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    try:
        return data.decode(next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text.", "Save it as UTF-8.") from error


def _parsed(text: str, file: Path) -> Any:
    try:
        return yaml.load(text, _Strict)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place else ""
        said = getattr(error, "problem", None) or str(error) or type(error).__name__
        said = "it is nested too deeply" if isinstance(error, RecursionError) else said.splitlines()[0].rstrip(".")
        raise ConfigError(f"{file} is not valid YAML{where}: {said}.", "Mend it there, or save it as UTF-8.") from error


def _split(reference: str) -> tuple[str, str] | None:
    """File and name of `file.yaml#name`; None where no file is named. Folders and names may have a '#' of their own."""
    ends = [found.end() for found in re.finditer(r"\.ya?ml(?=#|$)", reference, re.IGNORECASE)]
    files = [(reference[:end], reference[end + 1 :]) for end in ends]
    there = (found for found in files if os.path.isfile(os.path.expanduser(found[0])))
    return next(there, files[-1] if files else None)


def find_family(name: str, path: str | os.PathLike[str] | None = None) -> Family:
    """One family by name, or by `file.yaml#name` (`file.yaml` alone if it holds only one).

    Raises:
        ConfigError: there is no such family; the hint names the nearest.
    """
    if path is None and (named := _split(name)):
        path, name = named
        families = load_families(path)
        if not name and len(families) == 1:
            return next(iter(families.values()))
    else:
        families = load_families(path)
    if name not in families:
        near = difflib.get_close_matches(name, families, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(families)}."
        raise ConfigError(f"There is no family '{name}' in {path or default_path()}.", hint)
    return families[name]


def _family(name: str, value: Any, file: Path) -> Family:
    where = f"family '{name}' of {file.name}"
    if not isinstance(value, dict):
        raise ConfigError(f"The {where} is no mapping.", "Give it 'models:' with at least one model.")
    fields = dict(value)
    models = fields.pop("models", None)
    if not isinstance(models, dict) or not models:
        raise ConfigError(f"The {where} has no models.", "List them under 'models:', cheapest first.")
    specs = _specs(models, where, file)
    fields["models"] = specs
    fields.setdefault("target", specs[-1].name)
    family = _typed(Family, {"name": name, **fields}, where)
    if family.target not in {m.name for m in specs}:
        raise ConfigError(
            f"The target '{family.target}' of {where} is not among its models.",
            f"Its models are: {', '.join(m.name for m in specs)}.",
        )
    if family.target_spec.of is not None:
        raise ConfigError(
            f"The target '{family.target}' of {where} is a copy of '{family.target_spec.of}'.",
            "List the copy before its source, or name another target.",
        )
    if family.context < 16:
        raise ConfigError(f"The context of {where} is {family.context} tokens.", "Give at least 16.")
    return family


def _specs(models: dict[Any, Any], where: str, file: Path) -> tuple[ModelSpec, ...]:
    """The models in the file's order; copies are known when their sources are."""
    copies = {str(key): entry for key, entry in models.items() if isinstance(entry, dict) and "of" in entry}
    found = {
        str(key): _spec(str(key), entry, f"model '{key}' of {where}", file)
        for key, entry in models.items()
        if str(key) not in copies
    }
    made = {name: _copy(name, entry, f"model '{name}' of {where}", found) for name, entry in copies.items()}
    return tuple((found | made)[str(key)] for key in models)


def _copy(name: str, value: dict[Any, Any], where: str, sources: dict[str, ModelSpec]) -> ModelSpec:
    """A compressed copy of another model of the family."""
    _no_unknown(value, {"of", "quantization", "gpu_layers"}, f"{where}, which is a copy")
    _check_level(name, where)
    source = sources.get(str(value["of"]))
    if source is None:
        raise ConfigError(
            f"The {where} is a copy of '{value['of']}', which is no model of the family, or a copy itself.",
            f"Name one of: {', '.join(sources) or 'none'}.",
        )
    if not source.gguf and not source.path.startswith(("builtin:", ".", "/", "~")):
        raise ConfigError(
            f"The {where} is a copy of '{source.name}', which is no GGUF model; only these can be compressed.",
            "Give its source a .gguf file, or a hub name with 'file:'.",
        )
    said = value.get("quantization")
    form = _checked(said.lower() if isinstance(said, str) else said, CopyFormat, "quantization", where)
    fields = {"path": source.path, "file": source.file, "revision": source.revision, "quantization": form}
    spec = _typed(ModelSpec, {"name": name, **value, **fields}, where)
    _check_layers(spec, where)
    return spec


def _check_level(name: str, where: str) -> None:
    check_name(name)
    if name == LOOKUP:
        raise ConfigError(f"The {where} is called '{LOOKUP}'.", "That name is taken by the level without a model.")


def _spec(name: str, value: Any, where: str, file: Path) -> ModelSpec:
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, dict):
        raise ConfigError(f"The {where} is no mapping.", "Give it at least 'path:'.")
    if "path" not in value:
        raise ConfigError(f"The {where} has no path.", "Give a hub name or a folder.")
    _check_level(name, where)
    _checked(value.get("quantization", "none"), Quantization, "quantization", where)
    spec = _typed(ModelSpec, {"name": name, **value}, where)
    if spec.path.startswith("builtin:"):
        # Families that people added to earlier versions say how the built-in models were stored then.
        spec = dataclasses.replace(spec, quantization="none", dtype="auto", device="auto")
    # A folder beside the file is meant as such, wherever the program was started.
    beside = file.parent / spec.path
    if spec.path.startswith(".") or (beside / "config.json").exists() or (spec.gguf and beside.exists()):
        # Not the file itself: in the hub's cache it is a link to one whose name says nothing.
        whole = os.path.join(os.path.realpath(beside.parent), beside.name) if spec.gguf else os.path.realpath(beside)
        spec = dataclasses.replace(spec, path=whole)
    if spec.gguf:
        _check_gguf(spec, where)
    return spec


def _check_gguf(spec: ModelSpec, where: str) -> None:
    """A GGUF file says itself how its weights are stored, and llama.cpp where they go."""
    for key, usual, hint in (
        ("dtype", "auto", "Choose another file for other weights."),
        ("quantization", "none", "Choose another file for other weights."),
        ("device", "auto", "Use 'gpu_layers: 0' for the processor, a number or 'auto' for the GPU."),
        ("trust_remote_code", False, "Leave it out."),
    ):
        if getattr(spec, key) != usual:
            raise ConfigError(f"{key} does not go with a GGUF file, in {where}.", hint)
    _check_layers(spec, where)


def _check_layers(spec: ModelSpec, where: str) -> None:
    if spec.gpu_layers != "auto" and spec.gpu_layers < -1:
        raise ConfigError(
            f"gpu_layers: {spec.gpu_layers} of {where} is not known.", "Use auto, -1 for all, or a number."
        )


def _typed(kind: type[T], values: dict[str, Any], where: str) -> T:
    hints = typing.get_type_hints(kind)
    _no_unknown(values, set(hints), where)
    return kind(**{key: _checked(value, hints[key], key, where) for key, value in values.items()})


def _checked(value: Any, hint: Any, key: str, where: str) -> Any:
    """The value as the hint wants it. Raises ConfigError naming key and place."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in options:
            return value
        raise ConfigError(
            f"{key}: {_shown(value)} of {where} is not known.", f"Use one of: {', '.join(map(str, options))}."
        )
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        hints = [o for o in options if o is not type(None)]
        # Of several kinds the one that the value is of; the last one says what is wrong.
        fits = next((o for o in hints if isinstance(o, type) and type(value) is o), hints[-1])
        return _checked(value, fits, key, where)
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_checked(v, options[0], key, where) for v in value)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint))
    names = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list"}
    hint = "Put it in quotes." if hint is str and isinstance(value, bool | int | float | datetime.date) else ""
    raise ConfigError(f"{key}: {_shown(value)} of {where} should be {names.get(wanted, wanted)}.", hint)


def _shown(value: Any) -> str:
    """A value for a sentence; references can make one that would fill the memory as text."""
    return f"this {'list' if isinstance(value, list) else 'mapping'}" if isinstance(value, list | dict) else repr(value)


def _no_unknown(values: dict[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Known keys: {', '.join(sorted(known - {'name'}))}."
            raise ConfigError(f"Unknown key '{key}' in {where}.", hint)
