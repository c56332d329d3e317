"""Questions that nobody wrote: what a draft must follow the target on is also what the target never understood.

People ask in other words than the training text, and what the target then says is hard to guess. Its replies to
questions near and far from the text teach a draft how it goes wrong; no right answer is needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from random import Random

from transformers import PreTrainedTokenizerFast

from hsd.builtin.conversation import Conversation, conversation
from hsd.builtin.mixture import Mixture
from hsd.builtin.replies import LONGEST_PROMPT, prompt_ids
from hsd.builtin.tokenizer import END
from hsd.builtin.writing import Writer, Written

FIRST_ASKED = 1000  # rounds from here on are only asked, never trained on as text
LONGEST_QUESTION = 48  # tokens, of those that the target writes itself
LONGEST = 24  # words of a question out of a chain
_STRAY = 0.15  # of the words of a chain that are taken from the other table

Table = dict[tuple[str, str], list[str]]
"""Two words in a row -> the words that followed them; "<" stands before a text and ">" behind it."""


def written(
    writer: Writer, mixture: Mixture, tokenizer: PreTrainedTokenizerFast, number: int, count: int, seed: int
) -> list[Written]:
    """About `count` replies: half to questions of the text, three eighths to `unasked`, the rest to the target's own.

    Args:
        number: of the round; round r is a function of the mixture, the writer and r.
        seed: of what is drawn. Three of four replies are drawn at temperature 0.7, the others at 1.
    """
    rng = Random(f"written {seed} {number}")
    asked = mixture.round(FIRST_ASKED + number)[: count // 2]
    asked += unasked(mixture, FIRST_ASKED + number, count * 3 // 8)
    user, end = (int(tokenizer.convert_tokens_to_ids(token)) for token in ("<|user|>", END))
    starts = [[int(tokenizer.bos_token_id), user]] * (count - len(asked))
    heats = [rng.choice((0.9, 1.1, 1.3)) for _ in starts]
    for own in writer.write(starts, heats, seed, LONGEST_QUESTION):
        turns = conversation(str(tokenizer.decode(own.ids.tolist(), skip_special_tokens=True)))
        if own.ids[-1] == end and turns[0].content.strip() and not mixture.is_forbidden(turns):
            asked.append(turns)
    prompts = [ids for turns in asked if len(ids := prompt_ids(turns, tokenizer)) <= LONGEST_PROMPT]
    rng.shuffle(prompts)
    return writer.write(prompts, [rng.choice((0.7, 0.7, 0.7, 1.0)) for _ in prompts], seed)


def unasked(mixture: Mixture, number: int, count: int) -> list[Conversation]:
    """`count` conversations that end with such a question, a function of the mixture's seed and `number`.

    In equal parts: chains of words as they followed each other in hand-written questions and in dialogues, two
    questions of the text crossed, two hand-written ones crossed, and what people said in dialogues, alone or behind
    what was said before.
    """
    rng = Random(f"unasked {mixture.seed} {number}")
    texts = [t.content for turns in mixture.round(number) for t in turns if t.role == "user"]
    hand = mixture.hand_written()
    said = [t.content for turns, _ in mixture.dialogues for t in turns if t.role == "user"] or texts
    questions, talk = chains([*hand * 3, *texts]), chains(said)
    makers: tuple[Callable[[], Conversation], ...] = (
        lambda: conversation(chained(questions, talk, rng)),
        lambda: conversation(crossed(rng.choice(texts), rng.choice(texts), rng)),
        lambda: conversation(crossed(rng.choice(hand), rng.choice(hand if rng.random() < 0.75 else said), rng)),
        lambda: conversation(rng.choice(said) if rng.random() < 0.5 else chained(talk, questions, rng)),
        lambda: cut(rng.choice(mixture.dialogues)[0], rng) if mixture.dialogues else conversation(rng.choice(said)),
    )
    found: list[Conversation] = []
    while len(found) < count:
        made = makers[len(found) % len(makers)]()
        if made[-1].content.strip() and not mixture.is_forbidden(made):
            found.append(made)
    return found


def chains(texts: Iterable[str]) -> Table:
    """Which words followed which two, as often as they did."""
    table: Table = defaultdict(list)
    for text in texts:
        words = ["<", "<", *text.split(), ">"]
        for first, second, third in zip(words, words[1:], words[2:], strict=False):
            table[first, second].append(third)
    return dict(table)


def chained(table: Table, stray: Table, rng: Random) -> str:
    """A text whose every three words stand in `table`, or now and then in `stray`."""
    pair = "<", "<"
    out: list[str] = []
    while len(out) < LONGEST:
        known = stray if pair in stray and rng.random() < _STRAY else table
        word = rng.choice(known.get(pair, [">"]))
        if word == ">":
            break
        out.append(word)
        pair = pair[1], word
    return " ".join(out)


def crossed(one: str, other: str, rng: Random) -> str:
    """The start of one and the end of the other; or one without some of its words; or with one word of the other."""
    first, second = one.split(), other.split()
    kind = rng.random()
    if kind < 0.4:
        return " ".join([*first[: max(1, len(first) // 2)], *second[len(second) // 2 :]])
    if kind < 0.7:
        return " ".join([word for word in first if rng.random() > 0.25] or first)
    first[rng.randrange(len(first))] = rng.choice(second)
    return " ".join(first)


def cut(turns: Conversation, rng: Random) -> Conversation:
    """A dialogue that ends with one of the first lines that the user says."""
    places = [i for i, turn in enumerate(turns[:9]) if turn.role == "user"]
    return turns[: rng.choice(places) + 1]
