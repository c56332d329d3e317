"""The family's one vocabulary: byte-level BPE, a chat template that never rewrites what came before.

`<|bos|>`, then for every message its role's token, the content untouched, `<|end|>`. Every border is a special
token, so text on one side never merges with the other: the ids of a conversation start with the ids of its
beginning, and caches can be kept from turn to turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hsd import gguf
from hsd.builtin.conversation import Conversation
from hsd.runtime.llama_cpp.tokenizer import by_tokenizers

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
SPECIALS: tuple[str, ...] = (PAD, BOS, END, "<|system|>", "<|user|>", "<|assistant|>")
CONTEXT = 2048
WEIGHT_SCALE = 4
"""Loss weights are stored as small integers: 4 is 1.0 (what the assistant says), 1 is 0.25 (all other text)."""

CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('A message is from system, user or assistant.') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Words with their leading space, single digits, runs of punctuation, newlines apart from other white space.
_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}]+|\p{N}| ?[^\s\p{L}\p{N}]+|\n+|\s+(?!\S)|\s+"


def train(texts: Iterable[str], vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    """Learn merges from `texts` and wrap them as a transformers tokenizer with `vocabulary` entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def load(path: Path) -> PreTrainedTokenizerFast:
    """Read a tokenizer from a folder that `save_pretrained` wrote, or from a GGUF file."""
    if path.is_file():
        return by_tokenizers(gguf.header(path))
    return PreTrainedTokenizerFast.from_pretrained(path)


def encode(
    conversations: list[Conversation], tokenizer: PreTrainedTokenizerFast
) -> list[tuple[NDArray[np.uint16], NDArray[np.uint8]]]:
    """Ids and loss weights of conversations, the ids being those of the chat template.

    Returns:
        per conversation two arrays of shape [tokens]; a weight belongs to the token at its own position, that is, to
        the prediction made one position before it.
    """
    texts = [turn.content for turns in conversations for turn in turns]
    contents = iter(tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
    bos, end = tokenizer.convert_tokens_to_ids([BOS, END])
    encoded = []
    for turns in conversations:
        ids, weights = [bos], [0]
        for turn in turns:
            said = next(contents).ids
            weight = WEIGHT_SCALE if turn.role == "assistant" else 1
            ids += [tokenizer.convert_tokens_to_ids(f"<|{turn.role}|>"), *said, end]
            weights += [0 if turn.role == "assistant" else 1, *[weight] * (len(said) + 1)]
        encoded.append((np.array(ids, np.uint16), np.array(weights, np.uint8)))
    return encoded
