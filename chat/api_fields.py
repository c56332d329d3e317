"""What a client of the API may ask for: the body of a request to values, every impossible one named."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hsd
from chat import plans

MOST_MESSAGES = 2048
MOST_STOPS = 16
MOST_STOP_LETTERS = 1000
MOST_BIASES = 4096
LETTERS_PER_TOKEN = 16
"""More than any tokenizer's mean: what has more letters than this times the context cannot fit."""

INT64 = 1 << 63

# Names of clients -> names of ours. Of two for the same the later one counts.
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "n_predict": "max_tokens",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "seed": "seed",
}
WHOLE = ("top_k", "max_tokens", "seed")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ApiError(hsd.HsdError):
    """An answer that is an error, in OpenAI's shape.

    Args:
        status: of HTTP.
        message, hint: as for every error of ours.
        param: the field that is to blame.
        code: for programs.
        kind: OpenAI's `type`.
        headers: names and values that the answer carries.
    """

    def __init__(
        self,
        status: int,
        message: str,
        hint: str = "",
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status, self.param, self.code, self.kind, self.headers = status, param, code, kind, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """What the client reads."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def too_long(context: int, had: str) -> ApiError:
    """The messages do not fit. Clients look for these words before they leave old messages out.

    Args:
        context: of the family, in tokens.
        had: what the messages are or resulted in.
    """
    return ApiError(
        400,
        f"This model's maximum context length is {context} tokens. However, your messages {had}.",
        "Please reduce the length of the messages.",
        param="messages",
        code="context_length_exceeded",
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for, checked. `usage`: a stream ends with what it cost."""

    messages: list[dict[str, str]]
    params: hsd.SamplingParams
    plan: str
    stream: bool
    usage: bool


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises ApiError where it is none."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        values = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ApiError(400, f"The body is not JSON: {said}.", "Send one JSON object in UTF-8.") from error
    if not isinstance(values, dict):
        raise ApiError(400, "The body is not a JSON object.", 'Send {"messages": [...]}.')
    return values


def read(values: Mapping[str, Any], context: int, default_plan: str, levels: tuple[Sequence[str], str | None]) -> Asked:
    """What a request asks for. Fields that nobody here knows are ignored.

    Args:
        values: the body.
        context: of the family, in tokens.
        default_plan: where the request names none.
        levels: the family's models, cheapest first, and its target if that is known.

    Raises:
        ApiError: a value is impossible, or promises what this server cannot keep; it names the field.
    """
    _refuse_what_cannot_be_kept(values)
    stream = _flag(values.get("stream"), "stream")
    return Asked(
        messages=_messages(values.get("messages"), LETTERS_PER_TOKEN * context, context),
        params=_params(values, context),
        plan=_plan(values.get("plan"), default_plan, levels),
        stream=stream,
        usage=_usage(values.get("stream_options"), stream),
    )


def _bad(field: str, value: object, want: str) -> ApiError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:60] + "…"
    return ApiError(400, f"{field}={shown} is not possible.", f"{field} must be {want}.", param=field)


def _flag(value: object, field: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _bad(field, value, "true or false")


def _refuse_what_cannot_be_kept(values: Mapping[str, Any]) -> None:
    count = values.get("n")
    if count is not None and (isinstance(count, bool) or count != 1):
        raise _bad("n", count, "1: a request gets one reply")
    form = values.get("response_format")
    if form is not None and (not isinstance(form, dict) or form.get("type") != "text"):
        raise _bad("response_format", form, 'left out, or {"type": "text"}: no other form can be promised')
    choice = values.get("tool_choice")
    if isinstance(choice, dict) or choice == "required":
        raise _bad("tool_choice", choice, "left out: this server calls no tools")
    if _flag(values.get("logprobs"), "logprobs"):
        raise _bad("logprobs", True, "left out: probabilities are not given out")
    forms = values.get("modalities")
    if forms is not None and forms != ["text"]:
        raise _bad("modalities", forms, 'left out, or ["text"]')


def _usage(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _bad("stream_options", options, "an object")
    if not stream:
        raise ApiError(
            400, "stream_options is for streams, and stream is not true.", "Leave it out.", param="stream_options"
        )
    return _flag(options.get("include_usage"), "stream_options.include_usage")


def _plan(value: object, default: str, levels: tuple[Sequence[str], str | None]) -> str:
    if value is None:
        return default
    if not isinstance(value, str):
        raise _bad("plan", value, '"auto", or a plan like "tiny:3>large"')
    try:
        return plans.checked(value, *levels)
    except hsd.ConfigError as error:
        raise ApiError(400, error.message, error.hint, param="plan") from error


def _params(values: Mapping[str, Any], context: int) -> hsd.SamplingParams:
    chosen: dict[str, Any] = {"max_tokens": context}
    for field, name in SAMPLING.items():
        value = values.get(field)
        if value is None:
            continue
        if name in WHOLE and isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one kind of number: 512.0 and 5.12e2 are 512
        if isinstance(value, int) and not -INT64 <= value < INT64:
            raise _bad(field, value, "a number of at most 64 bits")
        try:
            meant = getattr(hsd.SamplingParams.from_dict({name: value}), name)
        except hsd.ConfigError as error:
            raise _bad(field, value, error.hint.removeprefix(f"{name} must be ").rstrip(".")) from error
        # The reply cannot be longer than the context, however much is asked for.
        chosen[name] = min(meant, context) if name == "max_tokens" else meant
    chosen["stop"] = _stops(values.get("stop"))
    chosen["logit_bias"] = _bias(values.get("logit_bias"))
    chosen["thinking"] = _thinking(values)
    return hsd.SamplingParams(**chosen)


def _stops(value: object) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(s and isinstance(s, str) for s in stops):
        raise _bad("stop", value, f"a string that is not empty, or at most {MOST_STOPS} of them")
    if any(len(stop) > MOST_STOP_LETTERS for stop in stops):
        raise _bad("stop", value, f"made of strings of at most {MOST_STOP_LETTERS} characters")
    return tuple(_whole(stop, "stop") for stop in stops)


def _bias(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MOST_BIASES:
        raise _bad("logit_bias", value, f"an object, token id to number, of at most {MOST_BIASES}")
    bias = {}
    for token, number in value.items():
        usual = isinstance(number, int | float) and not isinstance(number, bool)
        if not (token.isascii() and token.isdigit() and len(token) < 10 and usual and abs(number) <= 100):
            raise _bad("logit_bias", {token: number}, "token ids with numbers between -100 and 100")
        if not math.isfinite(number):
            raise _bad("logit_bias", {token: number}, "token ids with finite numbers")
        bias[int(token)] = float(number)
    return bias or None


def _thinking(values: Mapping[str, Any]) -> bool | None:
    """Whether the model is to think, in the ways that clients have to say it; None leaves it to the template."""
    given = values.get("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        raise _bad("chat_template_kwargs", given, "an object")
    wish = (given or {}).get("enable_thinking")
    if wish is not None:
        return _flag(wish, "chat_template_kwargs.enable_thinking")
    return False if values.get("reasoning_effort") == "none" else None


def _messages(value: object, letters: int, context: int) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _bad("messages", value, "a list with at least one message")
    # Every message takes a token at least, and is not read to find that out.
    most = min(MOST_MESSAGES, context)
    if len(value) > most:
        raise too_long(context, f"are {len(value)}, and at most {most} are read")
    messages = [_message(message, f"messages[{place}]") for place, message in enumerate(value)]
    total = sum(len(message["content"]) + len(message.get("reasoning_content", "")) for message in messages)
    if total > letters:
        raise too_long(context, f"resulted in {-(-total // LETTERS_PER_TOKEN)} tokens or more")
    return messages


def _message(message: object, field: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _bad(field, message, "an object with role and content")
    role = message.get("role")
    if role in ("tool", "function"):
        raise _bad(f"{field}.role", role, "system, developer, user or assistant: this server calls no tools")
    if not isinstance(role, str) or role not in ROLES:
        raise _bad(f"{field}.role", role, "system, developer, user or assistant")
    content = message.get("content")
    if role == "assistant" and content in (None, []):
        # A turn without words: it called a tool, was stopped, or was refused.
        content = message.get("refusal") or ""
    read = {"role": ROLES[role], "content": _content(content, f"{field}.content")}
    thought = message.get("reasoning_content")
    if thought and role == "assistant":
        read["reasoning_content"] = _content(thought, f"{field}.reasoning_content")
    return read


def _content(content: object, field: str) -> str:
    if isinstance(content, str):
        return _whole(content, field)
    if not isinstance(content, list) or not content:
        raise _bad(field, content, "a text, or a list of parts that are texts")
    return "\n".join(_part(part, f"{field}[{place}]") for place, part in enumerate(content))


def _part(part: object, field: str) -> str:
    if not isinstance(part, dict):
        raise _bad(field, part, 'a part like {"type": "text", "text": "…"}')
    kind = part.get("type")
    if kind in ("image_url", "input_image", "image"):
        raise ApiError(400, f"{field} is an image, and this family reads text alone.", "Send texts.", param=field)
    if kind not in ("text", "refusal"):
        raise _bad(f"{field}.type", kind, '"text": this family reads nothing else')
    text = part.get(kind)  # both kinds of part keep their text under their own name
    if not isinstance(text, str):
        raise _bad(f"{field}.{kind}", text, "a text")
    return _whole(text, f"{field}.{kind}")


def _whole(text: str, field: str) -> str:
    """The text, if it has no halves of characters, which JSON can write and nobody can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ApiError(
            400, f"{field} holds half of a character.", "Send whole characters of Unicode.", param=field
        ) from error
    return text
