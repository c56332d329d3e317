"""What can go wrong while a model is fetched and read: one sentence, and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

import torch

from hsd.config import ModelSpec
from hsd.errors import HsdError, LoadError
from hsd.loading.cache import hub_folder
from hsd.loading.hub import not_here

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TELL = "Check its path and files."


@contextlib.contextmanager
def readable(spec: ModelSpec) -> Iterator[None]:
    """Turns whatever fails inside into a LoadError about this model."""
    try:
        yield
    except HsdError:
        raise
    except Exception as error:
        raise explained(spec, error) from error


def explained(spec: ModelSpec, error: Exception) -> LoadError:
    """The sentence for an error of the hub's client, of transformers, of torch or of the disk."""
    name = f"'{spec.name}' ({spec.path})"
    chain = causes(error)
    text = str(error).strip()
    return (
        _of_the_hub(spec, name, chain)
        or _of_the_machine(name, chain)
        or _of_the_model(name, chain, text)
        or LoadError(f"{name} cannot be loaded: {_first_line(error)}.", _TELL)
    )


def causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it: transformers wraps the hub's errors into its own."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _of_the_hub(spec: ModelSpec, name: str, chain: list[BaseException]) -> LoadError | None:
    from huggingface_hub import errors as hub

    def was(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if was(hub.GatedRepoError):
        return LoadError(
            f"{name} is gated: the hub gives it only to people who accepted its terms.",
            f"Ask for access at https://huggingface.co/{spec.path}, then run 'hf auth login'.",
        )
    status = next((s for e in chain if (s := getattr(getattr(e, "response", None), "status_code", None))), 0)
    if was(hub.RepositoryNotFoundError):
        return LoadError(
            f"There is no {name} on the hub, or it is private.",
            "Check its path in models.yaml; for a private model run 'hf auth login'.",
        )
    if was(hub.RevisionNotFoundError):
        return LoadError(
            f"{name} has no revision '{spec.revision}' on the hub.", "Name a branch, a tag or a commit that it has."
        )
    return _by_status(name, status) if status else _no_answer(spec, chain)


def _by_status(name: str, status: int) -> LoadError:
    if status in (401, 403):
        return LoadError(
            f"The hub does not let this computer read {name} (status {status}): its token is wrong or lacks the right.",
            "Run 'hf auth login' with a token that may read it.",
        )
    return LoadError(
        f"{name} cannot be fetched: the hub answered with status {status}.",
        "Try again later; what has arrived is kept.",
    )


def _no_answer(spec: ModelSpec, chain: list[BaseException]) -> LoadError | None:
    from huggingface_hub import errors as hub

    # What httpx says before it asks anybody.
    if any(re.search("SOCKS proxy|for proxy URL", str(e)) or type(e).__name__ == "InvalidURL" for e in chain):
        return not_here(
            spec,
            "the proxy that the environment names cannot be used",
            "Mend or unset ALL_PROXY, HTTPS_PROXY, HTTP_PROXY and NO_PROXY; for SOCKS: pip install 'httpx[socks]'",
        )
    offline = (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    if any(isinstance(e, offline) or type(e).__module__.partition(".")[0] in ("httpx", "httpx2") for e in chain):
        return not_here(
            spec,
            "the hub does not answer",
            "Check the network: what has arrived is kept, and the next start goes on from there",
        )
    return None


def _of_the_machine(name: str, chain: list[BaseException]) -> LoadError | None:
    memory = next((e for e in chain if isinstance(e, MemoryError | torch.OutOfMemoryError)), None)
    if memory is not None:
        wanted = re.search(r"allocate ([\d.]+ \w+)", str(memory))
        free = re.search(r"([\d.]+ \w+) is free", str(memory))
        numbers = f": {wanted[1]} more were wanted{f', and {free[1]} are free' if free else ''}" if wanted else ""
        return LoadError(
            f"{name} does not fit the memory{numbers}.",
            "Close other programs, or choose a smaller family or 'quantization: nf4'.",
        )
    full = next((e for e in chain if isinstance(e, OSError) and e.errno in _FULL), None)
    if full is not None:
        return LoadError(
            f"The disk is full: {name} could not be written to {hub_folder()} ({full.strerror}).",
            "Free some, or set HF_HUB_CACHE to a folder on a larger disk; what has arrived is kept.",
        )
    denied = next((e for e in chain if isinstance(e, PermissionError)), None)
    if denied is not None:
        return LoadError(
            f"{name} cannot be written or read: {denied.filename or hub_folder()} is not this user's.",
            "Change its owner, or set HF_HUB_CACHE to a folder of your own.",
        )
    return None


def _of_the_model(name: str, chain: list[BaseException], text: str) -> LoadError | None:
    said = " ".join([text, *(str(e) for e in chain)])
    if "trust_remote_code" in said:
        return LoadError(
            f"{name} brings Python code of its own, which is not run.",
            "If you trust its authors, set 'trust_remote_code: true' for it in models.yaml.",
        )
    if "does not recognize this architecture" in said or "Unrecognized configuration class" in said:
        import transformers

        return LoadError(
            f"{name} is of a kind that transformers {transformers.__version__} does not know as a language model.",
            "Choose another model, or update the packages.",
        )
    if "automatic conversion of the weights" in said:
        return LoadError(
            f"{name} cannot be loaded: its quantized weights are not whole, or not of the shapes in config.json.",
            "Fetch it anew: delete its folder.",
        )
    if "instantiate the backend tokenizer" in said or "load tokenizer for" in said:
        return no_tokenizer(name)
    if "safetensors" in said and ("header" in said.lower() or "incomplete" in said.lower()):
        return LoadError(f"{name} cannot be loaded: {_first_line(chain[0])}.", "Fetch it anew: delete its folder.")
    return None


def no_tokenizer(name: str) -> LoadError:
    """The sentence for a folder of weights alone."""
    return LoadError(
        f"{name} has no tokenizer: its files hold no vocabulary.",
        "Put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside its weights.",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
