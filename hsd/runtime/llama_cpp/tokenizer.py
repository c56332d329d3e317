"""The tokenizer and chat template that a GGUF file holds, as the part of transformers' tokenizers that is used here.

llama.cpp splits the text. It knows the rules of splitting by name alone; a file whose rule it does not know carries its
tokenizer in the form of the `tokenizers` library beside it, and that one is used.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from hsd.errors import LoadError
from hsd.gguf import Header
from hsd.runtime.llama_cpp.model import LlamaCppModel

HUGGING_FACE = "tokenizer.huggingface.json"
_TEMPLATE = "tokenizer.chat_template"
_CONTROL, _USER_DEFINED = 3, 4  # of `tokenizer.ggml.token_type`
_PIECE = 256  # bytes of a token's text at first; longer ones are asked for again


def tokenizer_of(model: LlamaCppModel, header: Header) -> Any:
    """The tokenizer of a GGUF model. Raises LoadError where the file has none."""
    if HUGGING_FACE in header.values:
        return by_tokenizers(header)
    if header.values.get("tokenizer.ggml.model") in (None, "no_vocab", "none"):
        raise LoadError(f"{header.path.name} holds no tokenizer.", "Choose a file with one, or convert it anew.")
    return GgufTokenizer(model, header)


def template_of(header: Header) -> str | dict[str, str] | None:
    """The chat template; where there are several, all by their names."""
    named = {
        key.removeprefix(f"{_TEMPLATE}."): str(text)
        for key, text in header.values.items()
        if key.startswith(f"{_TEMPLATE}.")
    }
    default = header.values.get(_TEMPLATE)
    if not named:
        return None if default is None else str(default)
    return {**({} if default is None else {"default": str(default)}), **named}


def by_tokenizers(header: Header) -> Any:
    """transformers' tokenizer of a file that carries one in the form of the `tokenizers` library."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokens = {int(i): str(token) for i, token in enumerate(header.array("tokenizer.ggml.tokens"))}

    def named(key: str) -> str | None:
        return tokens.get(int(header.values.get(f"tokenizer.ggml.{key}_token_id", -1)))

    inner = Tokenizer.from_str(str(header.values[HUGGING_FACE]))
    control = [token.content for token in inner.get_added_tokens_decoder().values() if token.special]
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        additional_special_tokens=control,
        bos_token=named("bos"),
        eos_token=named("eos"),
        pad_token=named("padding"),
        unk_token=named("unknown"),
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template_of(header)
    made.model_max_length = 1 << 30
    return made


class GgufTokenizer:
    """Text to ids and back by the library.

    Args:
        model: whose vocabulary it is; it stays in memory as long as this does.
        header: of its file.

    Attributes:
        chat_template: Jinja; by name where there are several; None where the file has none.
        all_special_ids: control tokens, which are no text.
        added_tokens_decoder: id -> token, of these and of further tokens that are found in a text before it is split.
        bos_token_id, eos_token_id: None where the file names none.
        end_ids: control tokens that end a reply, as the library knows them.
    """

    clean_up_tokenization_spaces = False

    def __init__(self, model: LlamaCppModel, header: Header) -> None:
        self._model, self._lib, self._vocab = model, model._lib, model.vocabulary
        self._header = header
        self.chat_template = template_of(header)
        self.model_max_length = 1 << 30
        lib, vocab = self._lib, self._vocab
        # By the file: the library takes some tokens of text for control tokens by their names ("</s>" in Qwen's).
        kinds = header.array("tokenizer.ggml.token_type")
        self.all_special_ids = [i for i, kind in enumerate(kinds) if kind == _CONTROL]
        self._special = frozenset(self.all_special_ids)
        self.added_tokens_decoder = {
            i: AddedToken(self._text(i), special=kind == _CONTROL)
            for i, kind in enumerate(kinds)
            if kind in (_CONTROL, _USER_DEFINED)
        }
        self.bos_token_id = _known(lib.llama_vocab_bos(vocab))
        self.eos_token_id = _known(lib.llama_vocab_eos(vocab))
        self.end_ids = tuple(i for i in self.all_special_ids if lib.llama_vocab_is_eog(vocab, i))
        # Words of these vocabularies begin with a blank, and so does their first one.
        self._blank = header.values.get("tokenizer.ggml.model") == "llama" and bool(
            header.values.get("tokenizer.ggml.add_space_prefix", True)
        )
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            add_special_tokens: with what the family puts before every text.
            split_special_tokens: the names of control tokens are text like any other.
        """
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * size)()
            count = self._lib.llama_tokenize(
                self._vocab, data, len(data), ids, size, add_special_tokens, not split_special_tokens
            )
            if count >= 0:
                return list(ids[:count])
            size = -count

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; U+FFFD stands for a part of a character."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        data = b"".join(self._piece(i) for i in ids if not (skip_special_tokens and i in self._special))
        text = data.decode("utf-8", "replace")
        return text[1:] if self._blank and text.startswith(" ") else text

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, as the file spells them."""
        return dict(self._tokens)

    def __len__(self) -> int:
        return self._model.vocab

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Names that chat templates use."""
        names = {"bos_token": self.bos_token_id, "eos_token": self.eos_token_id}
        return {name: self._text(i) for name, i in names.items() if i is not None}

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, Any]], tokenize: bool = True, **variables: Any
    ) -> Any:
        """The conversation as the chat template writes it: text, or token ids. Raises what the template raises."""
        from transformers.utils.chat_template_utils import render_jinja_template  # seconds to import

        template = variables.pop("chat_template", None) or self.chat_template
        if isinstance(template, Mapping):
            template = template.get("default") or next(iter(template.values()))
        if template is None:
            raise ValueError("there is no chat template")
        rendered, _ = render_jinja_template(
            [list(conversation)], chat_template=template, **{**self.special_tokens_map, **variables}
        )
        return self.encode(rendered[0], add_special_tokens=False) if tokenize else rendered[0]

    @functools.cached_property
    def _tokens(self) -> dict[str, int]:
        return {str(token): i for i, token in enumerate(self._header.array("tokenizer.ggml.tokens"))}

    def _text(self, token_id: int) -> str:
        return (self._lib.llama_vocab_get_text(self._vocab, token_id) or b"").decode("utf-8", "replace")

    def _piece(self, token_id: int) -> bytes:
        known = self._pieces.get(token_id)
        if known is None:
            size = _PIECE
            while True:
                text = ctypes.create_string_buffer(size)
                wrote = self._lib.llama_token_to_piece(self._vocab, token_id, text, size, 0, True)
                if wrote >= 0:
                    break
                size = -wrote
            known = self._pieces[token_id] = text.raw[:wrote]
        return known


def _known(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None
