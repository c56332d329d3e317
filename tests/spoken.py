"""Tokenizers and templates of families with marks of their own, and replies in them."""

from __future__ import annotations

from typing import Any

from models import model
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

import hsd

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
OPENS = CHATML.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%")
"""ChatML that opens the thinking, as templates of models that always think do."""

CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if '<|channel|>' in m.content %}{{ raise_exception('Channels belong into fields.') }}{% endif %}"
    "{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
CHANNEL_TOKENS = ("<|endoftext|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>")


def byte_level(
    template: Any, special: tuple[str, ...] = CHATML_TOKENS, added: tuple[Any, ...] = (), **names: str
) -> PreTrainedTokenizerFast:
    """Bytes with a few merges, and tokens that were added: `special` ones, and `added` ones that are not."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "|"), ("|", ">"), ("h", "i"), ("Ġ", "<"), ("Ċ", "Ċ"), ("t", "h"), ("i", "m")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    fast = Tokenizer(kinds.BPE(vocab=vocab, merges=merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return _wrapped(fast, template, special, added, names)


def metaspace(template: Any, special: tuple[str, ...], added: tuple[Any, ...] = (), **names: str) -> Any:
    """Words that begin with a blank of their own, as SentencePiece's: the first word of a text gets one, too."""
    letters = [chr(i) for i in range(32, 127) if chr(i) != " "]
    merges = [("▁", "h"), ("▁h", "i"), ("▁", "<"), ("<", "|")]
    pieces = ["<unk>", "<s>", "</s>", "\n", "▁", *letters, *(a + b for a, b in merges)]
    fast = Tokenizer(kinds.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>"))
    fast.normalizer = normalizers.NFKC()
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    fast.decoder = decoders.Metaspace(prepend_scheme="first")
    return _wrapped(fast, template, special, added, names)


def _wrapped(fast: Tokenizer, template: Any, special: Any, added: Any, names: Any) -> PreTrainedTokenizerFast:
    fast.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    fast.add_tokens([text if isinstance(text, AddedToken) else AddedToken(text) for text in added])
    names.setdefault("eos_token", special[0])
    out = PreTrainedTokenizerFast(tokenizer_object=fast, clean_up_tokenization_spaces=False, **names)
    out.chat_template = template
    return out


def ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text as the tokenizer reads it, control tokens and all."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def engine(tokenizer: Any, context: int = 512, **options: Any) -> hsd.Engine:
    """A tiny real model behind the tokenizer. What it says is set by the test, with `forced_ids`."""
    made = model(vocab=len(tokenizer), context=context)
    made.generation_config.eos_token_id = made.config.eos_token_id = tokenizer.eos_token_id
    return hsd.Engine.from_models({"big": made}, tokenizer, **options)


def reply(engine: hsd.Engine, messages: Any, script: str, **options: Any) -> hsd.Reply:
    """The reply in which the model writes `script`, whose control tokens count; what follows is its own."""
    said = tuple(ids(engine.tokenizer, script))
    options = {"temperature": 0.0, "max_tokens": len(said), **options}
    return engine.generate(messages, hsd.SamplingParams(forced_ids=said, **options), plan="big")
