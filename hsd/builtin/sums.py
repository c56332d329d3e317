"""Generated sums and unit conversions, small enough to be learnt."""

from __future__ import annotations

from random import Random

from hsd.builtin.conversation import Conversation, conversation
from hsd.builtin.phrasing import careless

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
    """One sum: up to three digits for + and -, the times table up to 12, divisions without remainder."""
    sign = rng.choice("++--*/")
    if sign in "+-":
        top = rng.choice((10, 20, 100))
        a, b = rng.randint(0, top), rng.randint(0, top)
        if sign == "-" and b > a:
            a, b = b, a
    else:
        a, b = rng.randint(1, 12), rng.randint(1, 12)
        a = a * b if sign == "/" else a
    if rng.random() < 0.25:
        asked = rng.choice(_STORIES[sign]).format(a=a, b=b)
        return conversation(careless(asked, rng), f"{a} {sign} {b} = {_result(a, sign, b)}.")
    spoken = _SPOKEN[sign] if rng.random() < 0.3 else sign
    text = f"{a}{sign}{b}" if spoken == sign and rng.random() < 0.3 else f"{a} {spoken} {b}"
    return conversation(careless(rng.choice(_ASK).format(text), rng), f"{a} {sign} {b} = {_result(a, sign, b)}.")


def _result(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]


def units(rng: Random) -> Conversation:
    """One conversion of a round number, or of a temperature."""
    n = rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100))
    if rng.random() < 0.15:
        a, b, value = "degrees Celsius", "degrees Fahrenheit", n * 9 / 5 + 32
        about = ""
    else:
        a, b, factor = rng.choice(_UNITS)
        value = n * factor
        about = "" if factor == int(factor) else "about "
    shown = f"{value:.1f}".removesuffix(".0")
    asked = careless(rng.choice(_CONVERT).format(n=n, a=a, b=b), rng)
    return conversation(asked, f"{n} {a} are {about}{shown} {b}.")
