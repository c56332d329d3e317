"""What a folder is that is not a model as it is read here: named for what it is, with what would help.

Works on names of files, so that it also holds for a repository of the hub before anything is downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from hsd.errors import LoadError

_LFS = b"version https://git-lfs"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_QUANTIZERS = {
    **{"awq": "AWQ", "gptq": "GPTQ", "compressed-tensors": "compressed-tensors", "fp8": "FP8", "fbgemm_fp8": "FP8"},
    **{"exl2": "EXL2", "exl3": "EXL3", "mxfp4": "MXFP4", "hqq": "HQQ", "torchao": "torchao", "aqlm": "AQLM"},
}

Found = tuple[str, str]
"""What something is, as the end of a sentence that begins with its name, and a hint."""


def config_of(folder: Path) -> dict[str, Any]:
    """A folder's config.json; empty where there is none that can be read."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def not_a_model(folder: Path) -> Found | None:
    """Why no model can be read from a path, in words; None if it looks like one."""
    if folder.is_file():
        return _a_file(folder)
    if not folder.is_dir():
        return f"its weights are missing, there is no folder {folder}", "Check its path."
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return "the folder is empty", "Check its path, or download the model into it."
    inside = _of_the_hubs_cache(folder) or named_by_files(names) or _elsewhere(folder, names)
    if inside:
        return inside
    if "config.json" not in names:
        return "it holds no model, because it has no config.json", "Give a folder with config.json and safetensors."
    config = config_of(folder)
    return _pointers(folder) or _no_object(folder, config) or _by_config(config) or _not_found(names, config)


def named_by_files(names: Collection[str]) -> Found | None:
    """What the files of a folder or of a repository make of it; None if they may be a model.

    Args:
        names: names of the files and folders at its top.
    """
    if not _has_weights(names) and any(n.startswith(("adapter_config", "adapter_model")) for n in names):
        return (
            "it holds a LoRA adapter, which is a change to another model",
            "Merge it into its base model with peft (merge_and_unload, then save_pretrained) and give that folder.",
        )
    if "model_index.json" in names:
        return "it holds a diffusers model, which makes pictures", _TEXT
    if not {"modules.json", "config_sentence_transformers.json", "1_Pooling"}.isdisjoint(names):
        return "it holds a sentence-transformers model, which makes embeddings and writes no text", _TEXT
    if _has_weights(names):
        return None
    return _other_format(names)


_TEXT = "Choose a model that writes text."


def _has_weights(names: Collection[str]) -> bool:
    return any(n.endswith(".safetensors") and not n.startswith(("adapter_", "consolidated")) for n in names) or (
        "model.safetensors.index.json" in names
    )


_ORIGINAL = "Give the model in its original form, with config.json and safetensors."
_PICKLE = "has no safetensors, but {}: a pickle, which can run code when it is read"
_CONVERT = (
    "If you trust it, convert it with transformers (from_pretrained, then save_pretrained), or choose a model with "
    "safetensors."
)
_FORMATS: tuple[tuple[str, str, str], ...] = (
    (r".*\.gguf", "holds GGUF files, like {}", "Name one of them: as the path, or with file: '*Q4_K_M.gguf'."),
    (r".*ggml.*\.bin|.*\.llamafile", "holds {}, an older form of llama.cpp's files", _ORIGINAL),
    (r"Modelfile|manifests", "holds a model of Ollama ({})", _ORIGINAL),
    (r".*\.onnx|onnx", "holds an ONNX model ({})", _ORIGINAL),
    (r"openvino_\w+\.xml", "holds an OpenVINO model ({})", _ORIGINAL),
    (r"mlc-chat-config\.json|params_shard_\d+\.bin", "holds a model for MLC ({})", _ORIGINAL),
    (r"(shared_)?vocabulary\.\w+", "holds a CTranslate2 model ({})", _ORIGINAL),
    (r".*\.(h5|msgpack|keras)|saved_model\.pb", "holds weights for TensorFlow or JAX ({})", _ORIGINAL),
    (r".*\.(part|partial|incomplete|aria2|crdownload|download)", "holds {}: its download is not over", "Download it."),
    (r"pytorch_model.*\.bin", _PICKLE, _CONVERT),
    (
        r"global_step\d+|zero_to_fp32\.py|trainer_state\.json|optimizer\.\w+",
        "holds the state of a training ({}), and no weights as safetensors",
        "Give the folder that save_pretrained has written.",
    ),
    (r".*\.(bin|pt|pth|ckpt|pkl)", _PICKLE, _CONVERT),
    (r"consolidated.*\.safetensors", "holds {}, weights in Mistral's own format", _ORIGINAL),
    (
        r".*\.(distcp|pdparams|nemo|mlmodelc|mlpackage|tflite|npz|engine|plan|pte|torchscript|mnn|rkllm)",
        "holds {}, a format that is not read here",
        _ORIGINAL,
    ),
    (r".*\.(zip|tar|tgz|gz|xz|zst|7z|rar)", "holds an archive ({}), not a model", "Unpack it, and give its folder."),
    (r".*\.(parquet|arrow|jsonl|csv)|dataset_infos\.json", "holds data ({}), not a model", "Give a model's folder."),
    (r"config\.json", "has no safetensors: its weights are missing", "Download them too."),
    (r"tokenizer\w*\.(json|model)", "holds a tokenizer alone: its weights are missing", "Download them too."),
)
"""File, what its folder is, what would help: where there are no safetensors, the format that is read here."""


def _other_format(names: Collection[str]) -> Found | None:
    for pattern, what, hint in _FORMATS:
        found = next((name for name in sorted(names) if re.fullmatch(pattern, name, re.I)), None)
        if found:
            return f"it {what.format(found)}", hint
    return None


def _a_file(path: Path) -> Found:
    if path.suffix.lower() in (".gguf", ".llamafile"):
        return _other_format({path.name}) or ("", "")
    if path.suffix == ".safetensors":
        return "it is a file of weights, not a model", f"Give its folder: {path.parent}."
    return "it is a file, not a folder", "Give the folder that holds config.json and safetensors."


def _of_the_hubs_cache(folder: Path) -> Found | None:
    """A folder of the hub client's cache above the snapshot that holds the files."""
    store = folder.parent if folder.name in ("snapshots", "blobs", "refs") else folder
    if not (store.name.startswith("models--") and (store / "snapshots").is_dir()):
        return None
    name = store.name.removeprefix("models--").replace("--", "/", 1)
    return "it is a folder of the hub's cache, not a model", f"Give the model's name instead: {name}."


def _elsewhere(folder: Path, names: Collection[str]) -> Found | None:
    """A folder of models."""
    if "config.json" in names:
        return None
    folders = [n for n in sorted(names) if (folder / n).is_dir()]
    inner = next((n for n in folders if (folder / n / "config.json").is_file()), None)
    if inner is None:
        found = ((n, named_by_files({entry.name for entry in (folder / n).iterdir()})) for n in folders)
        return next(((f"{what} in {n}", hint) for n, one in found if one for what, hint in [one]), None)
    return f"it holds no model itself, but its folder {inner} does", f"Give {folder / inner}."


def _pointers(folder: Path) -> Found | None:
    """Files of which a clone without Git LFS has only pointers."""
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".json", ".model") and file.is_file() and file.stat().st_size < 1024:
            with file.open("rb") as stream:
                if stream.read(len(_LFS)) == _LFS:
                    return (
                        f"{file.name} is a pointer of Git LFS, not the file itself",
                        f"Run 'git lfs pull' in {folder}, or give the model's name on the hub.",
                    )
    return None


def _no_object(folder: Path, config: dict[str, Any]) -> Found | None:
    """A config.json that cannot be read; many a download is a page that says why it failed."""
    if config or (folder / "config.json").read_bytes().strip() == b"{}":
        return None
    return "its config.json is no JSON object", "Restore the file, or download it anew."


def _not_found(names: Collection[str], config: dict[str, Any]) -> Found | None:
    """Weights under names that transformers does not look for."""
    if not {"model.safetensors", "model.safetensors.index.json"}.isdisjoint(names) or "transformers_weights" in config:
        return None
    files = sorted(n for n in names if n.endswith(".safetensors"))
    if len(files) == 1 and not re.search(r"-of-\d+", files[0]):
        return f"its weights are called {files[0]}, and only model.safetensors is read", f"Rename {files[0]}."
    return (
        f"it has no model.safetensors.index.json, which says what is in {files[0]} and the other files of weights",
        "Download it too.",
    )


_JUDGES = r"\w+(Classification|RewardModel|QuestionAnswering|MultipleChoice)"


def _by_config(config: dict[str, Any]) -> Found | None:
    """What config.json says that cannot be run by any means here."""
    if isinstance(config.get("_class_name"), str):
        return f"it holds a part of a diffusers model ({config['_class_name']})", _TEXT
    made = config.get("architectures")
    if isinstance(made, list) and made and all(re.fullmatch(_JUDGES, str(name)) for name in made):
        return f"it is a model that judges texts ({made[0]}) and writes none", _CAUSAL
    method = quantization_of(config).get("quant_method")
    if method in ("exl2", "exl3"):
        return f"its weights are stored for ExLlama ({str(method).upper()})", _UNQUANTIZED
    kept = config.get("quantization")
    if isinstance(kept, dict) and "group_size" in kept and not method:
        return "its weights are stored for MLX", _UNQUANTIZED
    if config.get("is_encoder_decoder"):
        return "it is an encoder-decoder model, which answers a text with another and does not go on with it", _CAUSAL
    return None


_UNQUANTIZED = "Give the model as it was published, and set 'quantization: nf4' or 'int8' to store it in 4 or 8 bits."
_CAUSAL = "Choose a model that is made for writing text (a causal language model)."


def refused(name: str, path: str, found: Found) -> LoadError:
    """The sentence for a model that is not what it should be."""
    return LoadError(f"'{name}' ({path}) cannot be loaded: {found[0]}.", found[1])


def quantization_of(config: dict[str, Any]) -> dict[str, Any]:
    """What a config.json says of stored quantization; empty if nothing."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        found = part.get("quantization_config") or part.get("compression_config")
        if isinstance(found, dict):
            return found
    return {}


def stored_bytes(config: dict[str, Any]) -> float:
    """Bytes per weight of the linear layers of a checkpoint that is stored quantized, with its scales; 0 if it is not,
    if it is by bitsandbytes, or if nothing says in how many bits."""
    stored = quantization_of(config)
    if not stored or bitsandbytes_of(config):
        return 0.0
    groups = [g.get("weights") or {} for g in (stored.get("config_groups") or {}).values() if isinstance(g, dict)]
    inner = (stored.get("quant_config") or {}).get("weight_quant_params") or {}  # HQQ
    places = [stored, *groups, inner]
    bits = next((float(p[k]) for p in places for k in _BITS if isinstance(p.get(k), int | float)), 0.0)
    if not bits:
        said = re.search(r"\d+", f"{stored.get('quant_type') or stored.get('weights') or stored.get('quant_method')}")
        bits = float(said[0]) if said and float(said[0]) <= 8 else 0.0
    group = next((p[k] for p in places for k in _GROUPS if isinstance(p.get(k), int)), 0)
    return bits / 8 + ((2 + bits / 8) / group if bits and group > 0 else 0.0)


_BITS = ("bits", "w_bit", "nbits", "num_bits", "weight_bits")
_GROUPS = ("group_size", "q_group_size")


def bitsandbytes_of(config: dict[str, Any]) -> Literal["nf4", "int8"] | None:
    """How bitsandbytes stored a checkpoint; None if it did not."""
    stored = quantization_of(config)
    if stored.get("load_in_4bit"):
        return "nf4"
    return "int8" if stored.get("load_in_8bit") else None


def unpacked_without_gpu(config: dict[str, Any]) -> bool:
    """Whether transformers unpacks a stored checkpoint to 16 bits where there is no GPU."""
    return quantization_of(config).get("quant_method") in ("fp8", "mxfp8", "mxfp4")


def cannot_run(config: dict[str, Any]) -> Found | None:
    """Why weights that are stored quantized cannot be computed with here, as transformers says; None if they can.

    Imports transformers.
    """
    stored = quantization_of(config)
    method = str(stored.get("quant_method") or "")
    if not stored or method == "bitsandbytes":
        return None
    from transformers.quantizers import AutoHfQuantizer

    name = _QUANTIZERS.get(method, method or "a way that config.json does not name")
    try:
        AutoHfQuantizer.from_config(dict(stored), pre_quantized=True).validate_environment(device_map={"": "cpu"})
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if "Unknown quantization" in said:
            said = "transformers does not know it"
        return f"its weights are stored in {name}, which cannot be computed here ({said})", _UNQUANTIZED
    return None
