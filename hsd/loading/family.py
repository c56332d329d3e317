"""A family in memory: which models may stand together, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hsd.config import Family, ModelSpec
from hsd.errors import ConfigError, LoadError
from hsd.marks import Marks, Tokenizer, thinks
from hsd.memory import MemoryFit
from hsd.runtime import LanguageModel, wrap
from hsd.runtime.base import MAX_WIDTH
from hsd.runtime.llama_cpp.model import LlamaCppModel
from hsd.runtime.rope import reads_anew, switch_length
from hsd.types import LOOKUP, Dropped, FamilyInfo, check_name

_UNSPOKEN = 64
"""At most this many special tokens are given up for the sake of a draft."""


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
        memory: what its weights take, measured, and what its caches may grow to; None for models that a program held.
        cache_bytes: what the caches of all conversations may take of the device.
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
    memory: MemoryFit | None = None
    cache_bytes: int = 1 << 62

    @property
    def target(self) -> LanguageModel:
        """The model whose tokens the reply is made of."""
        return self.models[list(self.models)[-1]]

    @property
    def key(self) -> str:
        """What acceptances are valid for: the models, their sizes, how they are stored and what they compute in."""
        parts = [
            f"{name}={self.parameters[name]}/{self.stored.get(name, '')}/{model.dtype}"
            for name, model in self.models.items()
        ]
        return f"{self.family.name}: {', '.join(parts)}"

    @property
    def backend(self) -> str:
        """What determines replies beside requests and plans: `key`, where weights come from, how steps are computed."""
        specs = {spec.name: spec for spec in self.family.models}
        steps = [f"{name}={specs[name].path}@{specs[name].revision} {m.kind}" for name, m in self.models.items()]
        return f"{self.key}; {', '.join(steps)}"

    def info(self, notes: Sequence[str] = ()) -> FamilyInfo:
        """The same for people, with further notes."""
        return FamilyInfo(
            name=self.family.name,
            title=self.family.title or self.family.name,
            models=tuple(self.models),
            target=self.target.name,
            context=self.target.context,
            device=str(self.target.device),
            parameters=self.parameters,
            dropped=self.dropped,
            notes=(*self.notes, *notes),
            memory=self.memory,
            thinking=thinks(self.tokenizer),
            backend=self.backend,
            exact={name: m.exact for name, m in self.models.items() if isinstance(m, LlamaCppModel)},
        )


def in_memory(
    models: Mapping[str, Any], target: str | None, context: int | None, overflow: str
) -> tuple[Family, dict[str, Any]]:
    """A family for models that a program holds, and the models in its order, the target last.

    Raises:
        ConfigError: no models, a target that is not among them, or an unknown way to overflow.
    """
    if not models:
        raise ConfigError("There are no models.", "Give at least one.")
    for name in models:
        check_name(name)
    target = target or list(models)[-1]
    if target not in models:
        raise ConfigError(f"The target '{target}' is not among the models: {', '.join(models)}.")
    if overflow not in ("refuse", "drop"):
        raise ConfigError(f"overflow={overflow!r} is not known.", "Use 'refuse' or 'drop'.")
    ordered = {**{n: m for n, m in models.items() if n != target}, target: models[target]}
    longest = _positions(models[target])
    family = Family(
        name="models",
        models=tuple(ModelSpec(name, path=name) for name in ordered),
        target=target,
        context=min(context or min(longest, 4096), longest),
        overflow="drop" if overflow == "drop" else "refuse",
    )
    return family, ordered


def assemble(
    family: Family,
    models: Mapping[str, Any],
    tokenizer: Tokenizer,
    stored: Mapping[str, str] | None = None,
    dropped: Sequence[Dropped] = (),
) -> Loaded:
    """A family of models that are in memory, the target last; drafts that do not fit are left out.

    Models are those of transformers, or of llama.cpp.

    Raises:
        LoadError: the target cannot be used.
    """
    out = list(dropped)
    vocab = max(tokenizer.get_vocab().values()) + 1
    *drafts, target = models
    context = min(family.context, _positions(models[target]), _steady(models[target]))
    try:
        wrapped = {target: wrap(target, models[target], context)}
    except LoadError:
        raise
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise LoadError(f"The target '{target}' is no causal language model: {said}.", "Choose another.") from error
    # The target's own rows bound the vocabulary: what it cannot emit, no reply holds.
    vocab = min(vocab, wrapped[target].vocab)
    end_ids = _end_ids(models[target], tokenizer)
    vocab, unspoken = _shared_vocab(vocab, [models[name] for name in drafts], tokenizer, end_ids)
    notes = (*_notes(family, context, wrapped[target], models[target]), *unspoken)
    for name in drafts:
        try:
            reason = _unusable(name, models[name], context, vocab)
            if reason is None:
                model = wrap(name, models[name], context)
                within = isinstance(model, LlamaCppModel) and model.states  # a draft is cut back over several passes
                if model.cuttable and not within:
                    wrapped[name] = model
                    continue
                reason = "its cache cannot be cut back after a rejection (a recurrent or hybrid model)"
        except LoadError as error:
            reason = error.message.rstrip(".")
        except Exception as error:  # a draft is never worth the family, whatever is wrong with it
            reason = f"it cannot be used: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        out.append(Dropped(name, f"Left out: {reason}."))
    order = [n for n in models if n in wrapped]
    return Loaded(
        family=family,
        models={name: wrapped[name] for name in order},
        tokenizer=tokenizer,
        vocab=vocab,
        end_ids=end_ids,
        parameters={name: _parameters(models[name]) for name in order},
        stored={name: (stored or {}).get(name, wrapped[name].dtype) for name in order},
        dropped=tuple(out),
        notes=notes,
    )


def _notes(family: Family, context: int, target: LanguageModel, model: Any) -> tuple[str, ...]:
    notes = []
    if context < family.context and context < _positions(model):
        notes.append(
            f"The context is {context} tokens: in longer texts '{target.name}' turns all positions by other factors, "
            "which its cached tokens do not follow."
        )
    elif context < family.context:
        notes.append(f"The context is {context} tokens: '{target.name}' was not made for {family.context}.")
    if not target.cuttable:
        notes.append(
            f"'{target.name}' decodes plainly: its cache cannot be cut back after a rejection, so drafts cannot help."
        )
    if isinstance(target, LlamaCppModel):
        notes += _rounding(target)
    if target.single:
        notes.append(
            f"'{target.name}' reads what is behind its cache token by token, because wider passes would ignore the "
            "text before: long prompts take a while."
        )
    return tuple(notes)


def _rounding(target: LlamaCppModel) -> list[str]:
    """What there is to know of a GGUF target's rows in passes over several tokens; nothing where they are equal."""
    if not target.exact:
        return [
            f"Where two tokens are nearly as likely, '{target.name}' may choose another one with drafts than without: "
            "a pass over several tokens can round differently. With 'exact: true' it does not."
        ]
    if target.widest == 1:
        return [
            f"'{target.name}' verifies drafts token by token, because wider passes round differently: no draft pays."
        ]
    if target.widest < MAX_WIDTH:
        return [
            f"'{target.name}' gives the same rows with and without drafts: it verifies them in passes over at most "
            f"{target.widest} tokens."
        ]
    return []


def _shared_vocab(
    vocab: int, drafts: Sequence[Any], tokenizer: Any, end_ids: tuple[int, ...]
) -> tuple[int, tuple[str, ...]]:
    """The vocabulary without the special tokens at its end that some draft has no rows for, and a note about them.

    Gemma 3's larger models have a token for pictures that the smaller ones lack. A draft is worth more than a token
    that no text holds; tokens of text, and those that end a reply, are never given up.
    """
    special = {*tokenizer.all_special_ids}
    special |= {i for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items() if getattr(t, "special", False)}
    lost: list[int] = []
    for rows in sorted({_rows(model) for model in drafts}, reverse=True):
        beyond = range(rows, vocab)
        if beyond and len(beyond) <= _UNSPOKEN and all(i in special and i not in end_ids for i in beyond):
            lost, vocab = [*beyond, *lost], rows
    if not lost:
        return vocab, ()
    return vocab, (f"Token ids {lost[0]} to {lost[-1]} are special and not known to every draft: no reply uses them.",)


def _rows(model: Any) -> int:
    """Rows of the head; very many where a model shows none, which is found out later."""
    if isinstance(model, LlamaCppModel):
        return model.vocab
    try:
        return int(model.get_output_embeddings().weight.shape[0])
    except AttributeError:
        return 1 << 30


def _unusable(name: str, model: Any, context: int, vocab: int) -> str | None:
    """Why a draft cannot stand under the target, in words; None if it can."""
    if name == LOOKUP:
        return "the name 'lookup' is taken by the level without a model"
    rows = _rows(model)
    if rows < vocab:
        return f"it knows {rows} tokens, the target {vocab}; the vocabularies differ"
    if _positions(model) < context:
        return f"it was made for {_positions(model)} positions, the family's context is {context}"
    return None


def _positions(model: Any) -> int:
    """Longest sequence that a model was made for; very many where its configuration sets no bound."""
    if isinstance(model, LlamaCppModel):
        return model.trained_context or 1 << 30
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "max_position_embeddings", None) or 1 << 30)


def _steady(model: Any) -> int:
    """Longest text for which positions are turned by one set of factors, or read anew beyond it; else very many."""
    config = getattr(model, "config", None)
    limit = None if config is None else switch_length(config)
    return 1 << 30 if limit is None or reads_anew(model) else limit


def _parameters(model: Any) -> int:
    if isinstance(model, LlamaCppModel):
        return model.parameters
    # bitsandbytes packs two 4-bit weights into a byte; transformers knows how to count them.
    return (
        int(model.num_parameters()) if hasattr(model, "num_parameters") else sum(p.numel() for p in model.parameters())
    )


def _end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a reply: those that the model's files name, and what the template puts behind a reply."""
    ends = {*Marks(tokenizer).end_ids, *getattr(tokenizer, "end_ids", ())}
    for source in (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer):
        value = getattr(source, "eos_token_id", None)
        ends.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    if wrong := [end for end in ends if not isinstance(end, int)]:
        raise LoadError(
            f"The end token {wrong[0]!r} is no token id.",
            "Correct eos_token_id in config.json and generation_config.json.",
        )
    return tuple(sorted(ends))
