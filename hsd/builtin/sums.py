"""Generated sums and unit conversions, small enough to be learnt."""

from __future__ import annotations

import re
from functools import cache
from random import Random

from hsd.builtin.conversation import Conversation, conversation
from hsd.builtin.phrasing import careless
from hsd.builtin.questions import read_sums

_ASK = (
    "What is {}?",
    "What is {}?",
    "{}",
    "{} = ?",
    "{}?",
    "How much is {}?",
    "Calculate {}.",
    "what's {}",
    "Can you work out {}?",
    "Please compute {}.",
    "quick: {}",
    "What do I get for {}?",
    "Do you know what {} is?",
    "tell me {}",
)
_STORIES = {
    "+": (
        "I have {a} apples and get {b} more. How many do I have?",
        "There are {a} cars and {b} more arrive, how many is that?",
        "I paid {a} euros and then {b} euros. What is the sum?",
        "add {a} and {b}",
    ),
    "-": (
        "I have {a} apples and eat {b}. How many are left?",
        "There were {a} people and {b} went home, how many are still there?",
        "What is the difference between {a} and {b}?",
        "subtract {b} from {a}",
    ),
    "*": (
        "{b} boxes hold {a} bottles each. How many bottles are there?",
        "One ticket costs {a} euros, what do {b} cost?",
        "multiply {a} by {b}",
    ),
    "/": (
        "{a} sweets are shared by {b} children. How many does each get?",
        "divide {a} by {b}",
    ),
}
_SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_UNITS: tuple[tuple[str, str, float], ...] = (
    ("kilometers", "miles", 0.621371),
    ("miles", "kilometers", 1.609344),
    ("kilograms", "pounds", 2.204623),
    ("pounds", "kilograms", 0.453592),
    ("inches", "centimeters", 2.54),
    ("centimeters", "inches", 0.393701),
    ("meters", "feet", 3.28084),
    ("feet", "meters", 0.3048),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("kilometers", "meters", 1000),
    ("kilograms", "grams", 1000),
    ("GB", "MB", 1000),
    ("KiB", "bytes", 1024),
)
_CONVERT = (
    "How many {b} are {n} {a}?",
    "Convert {n} {a} to {b}.",
    "{n} {a} in {b}",
    "What is {n} {a} in {b}?",
    "{n} {a} to {b}",
    "How much is {n} {a} in {b}?",
    "what are {n} {a} in {b}",
    "I have {n} {a}, how many {b} is that?",
    "Turn {n} {a} into {b}.",
    "Express {n} {a} in {b}.",
)


def arithmetic(rng: Random) -> Conversation:
    """One sum: numbers up to 100 for + and -, the times table, two digits times one, divisions without remainder."""
    while True:
        sign = rng.choice("+++---**/")
        a, b = _numbers(sign, rng)
        if (sign, a, b) not in _held_out()[0]:
            break
    if rng.random() < 0.25:
        asked = rng.choice(_STORIES[sign]).format(a=a, b=b)
    else:
        spoken = _SPOKEN[sign] if rng.random() < 0.3 else sign
        text = f"{a}{sign}{b}" if spoken == sign and rng.random() < 0.3 else f"{a} {spoken} {b}"
        asked = rng.choice(_ASK).format(text)
    return conversation(careless(asked, rng), f"{a} {sign} {b} = {_worked(a, sign, b)}.")


def _numbers(sign: str, rng: Random) -> tuple[int, int]:
    if sign in "+-":
        top = rng.choice((20, 100, 100))
        a, b = rng.randint(0, top), rng.randint(0, top)
        return (b, a) if sign == "-" and b > a else (a, b)
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    if sign == "*" and rng.random() < 0.4:
        a, b = rng.randint(11, 99), rng.randint(2, 9)
    return (a * b if sign == "/" else a), b


def _worked(a: int, sign: str, b: int) -> str:
    """The result, behind a step in between where tens and ones are both to be reckoned with. Meant to make sums easier
    to learn; whether it did stands in docs/log.md."""
    if sign == "+" and min(a, b) > 10 and a % 10 and b % 10:
        return f"{a - a % 10 + b - b % 10} + {a % 10 + b % 10} = {a + b}"
    if sign == "-" and b > 10 and b % 10 and a % 10 < b % 10 and a < 100:
        return f"{a - b + b % 10} - {b % 10} = {a - b}"
    if sign == "*" and a > 12 and a % 10:
        return f"{(a - a % 10) * b} + {a % 10 * b} = {a * b}"
    return str({"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign])


def units(rng: Random) -> Conversation:
    """One conversion of a number up to 100, or of a temperature."""
    while True:
        n = rng.choice((rng.randint(1, 10), 10 * rng.randint(1, 10), rng.randint(11, 99), rng.randint(11, 99)))
        a, b, factor = rng.choice(_UNITS)
        if (n, a, b) not in _held_out()[1]:
            break
    if rng.random() < 0.08:
        a, b, worked = "degrees Celsius", "degrees Fahrenheit", _shown(n * 9 / 5 + 32)
    else:
        worked = "" if factor == int(factor) else "about "
        if n > 10 and n % 10 and factor % 1000:  # three zeros more need no step in between
            worked += f"{_shown((n - n % 10) * factor, 2)} + {_shown(n % 10 * factor, 2)} = "
        worked += _shown(n * factor)
    return conversation(careless(rng.choice(_CONVERT).format(n=n, a=a, b=b), rng), f"{n} {a} are {worked} {b}.")


def _shown(value: float, places: int = 1) -> str:
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@cache
def _held_out() -> tuple[frozenset[tuple[str, int, int]], frozenset[tuple[int, str, str]]]:
    """What the held-out sums ask for: (sign, a, b), and (n, unit, unit). No wording of these is trained on."""
    replies = [turns[-1].content for turns in read_sums()]
    signs = {(m[2], int(m[1]), int(m[3])) for m in (re.match(r"(\d+) ([-+*/]) (\d+) = ", r) for r in replies) if m}
    pairs = [re.match(r"(\d+) (.+?) are (?:about )?[\d.]+ (.+)\.$", r) for r in replies]
    return frozenset(signs), frozenset((int(m[1]), m[2], m[3]) for m in pairs if m)
