"""A scripted engine with the surface that the chat uses: words instead of models, at a pace the test sets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import hsd

INFO = hsd.FamilyInfo(
    name="scripted",
    title="Scripted family",
    models=("tiny", "small", "big"),
    target="big",
    context=2048,
    device="cpu",
    parameters={"tiny": 700_000, "small": 2_000_000, "big": 25_000_000},
    dropped=(hsd.Dropped("middle", "its vocabulary is not the target's"),),
)
PLAN = hsd.Plan.parse("lookup:2>tiny:3>big")


class Vocabulary:
    """Every word it has seen is a token."""

    all_special_ids: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self.ids(text.split(" ")))

    def ids(self, words: Sequence[str]) -> tuple[int, ...]:
        self.words += [word for word in words if word not in self.words]
        return tuple(self.words.index(word) for word in words)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return " ".join(self.words[i] for i in ids)


class ScriptedEngine:
    """Answers every prompt with `script(messages)`, three words a round, `pause` seconds apart.

    A prompt of more than 200 words is refused, one that holds "FAIL" ends in an error half way, and one that holds
    "slowly" is answered ten times as slowly.
    """

    def __init__(self, script: Callable[[Sequence[Mapping[str, Any]]], str], pause: float = 0.01) -> None:
        self.info = INFO
        self.tokenizer = Vocabulary()
        self.script, self.pause = script, pause
        self.prompts: list[list[Mapping[str, Any]]] = []
        self.learned = self.learning_stopped = 0
        self.closed = False
        self.busy = threading.Event()

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: hsd.SamplingParams,
        *,
        plan: str = "auto",
        cancel: threading.Event | None = None,
        drop: bool | None = None,
    ) -> Iterator[hsd.Event]:
        messages, said = self._understood(messages)
        self.prompts.append(list(messages))
        last = str(messages[-1]["content"])
        if len(last.split()) > 200:
            raise hsd.PromptError("The prompt has 900 tokens, the context 512.", "Shorten the message.")
        chosen = PLAN if plan == "auto" else hsd.Plan.parse(plan)
        yield hsd.Started(chosen, prompt_tokens=12, reused_tokens=4)
        words = self.script(messages).split(" ")[said:][: params.max_tokens]
        space, begun, text, reason, said = " " if said else "", time.monotonic(), "", "stop", 0
        for start in range(0, len(words), 3):
            self.busy.set()
            time.sleep(self.pause * (10 if "slowly" in last else 1))
            if cancel is not None and cancel.is_set():
                reason = "cancelled"
                break
            if "FAIL" in last and start >= 3:
                raise hsd.ModelError("small", "gave no distribution.", "Try float32.")
            some = words[start : start + 3]
            piece = (" " if start else space) + " ".join(some)
            text, said = text + piece, said + len(some)
            yield hsd.Tokens(piece, self.tokenizer.ids(some), ("lookup", "tiny", "big")[: len(some)])
        yield hsd.Finished(self._reply(text, said, reason, chosen, time.monotonic() - begun))

    def _understood(self, messages: Any) -> tuple[list[Any], int]:
        """What is answered, and how many words of the reply are there already."""
        if messages[-1]["role"] != "assistant":
            return list(messages), 0
        return list(messages[:-1]), len(messages[-1]["content"].split(" "))

    def _reply(self, text: str, said: int, reason: Any, plan: hsd.Plan, spent: float) -> hsd.Reply:
        rounds = -(-said // 3)
        levels = (
            hsd.LevelStats("lookup", rounds, rounds, rounds, 0.001, 1.0),
            hsd.LevelStats("tiny", rounds * 2, rounds, rounds * 2, 0.01, 1.0),
            hsd.LevelStats("big", 0, 0, rounds, 0.1, 3.0),
        )
        stats = hsd.ReplyStats(
            seconds=max(spent, 1e-3),
            first_token_seconds=self.pause,
            prompt_tokens=12,
            reused_tokens=4,
            tokens=said,
            speedup=2.4,
            baseline_seconds=2.4 * max(spent, 1e-3),
            plan=str(plan),
            target_passes=rounds,
            levels=levels,
            provenance=(("lookup", "tiny", "big") * rounds)[:said],
            prefill_seconds=0.01,
            decode_seconds=max(spent, 1e-3),
            model_seconds=0.11,
            forecast_ms_per_token=3.3,
        )
        return hsd.Reply(
            text, self.tokenizer.ids(text.removeprefix(" ").split(" ")) if text else (), reason, stats, seed=1
        )

    def learn(self, should_stop: Callable[[], bool]) -> bool:
        self.learned += 1
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            if should_stop():
                self.learning_stopped += 1
                break
            time.sleep(0.005)
        return False

    def close(self) -> None:
        self.closed = True


def poem(messages: Sequence[Mapping[str, Any]]) -> str:
    """A reply with Markdown, code and things that would break a careless page."""
    asked = str(messages[-1]["content"])
    if "formula" in asked:
        return FORMULAS
    return "\n\n".join([POEM] * next((times for word, times in TIMES.items() if word in asked), 1))


TIMES = {"endless": 200, "long": 8, "medium": 3}
"""How often a prompt with this word is answered; a test that needs the reply to last stops it."""


FORMULAS = r"""<think>
The roots <b>of</b> a quadratic.
</think>

The equation $a x^2 + b x + c = 0$ has the roots

$$
x_{1,2} = \frac{-b \pm \sqrt{b^2 - 4 a c}}{2 a}
$$

of which \(\href{javascript:alert(1)}{\text{none}}\) costs $5 or $10, and \(\broken{\) stays."""

POEM = """Use `tar` with **x** for *extract*:

```bash
tar -xzf archive.tar.gz   # <b>not bold</b>
```

1. `x` extracts,
2. `z` goes through gzip,
3. `f` names the file.

| flag | meaning |
|---|---|
| -v | say what is done |

<script>document.title = "broken"</script> <img src=x onerror="document.title='broken'"> ${1+1} {{value}}

Read [more](https://example.org) about it, and not [this](javascript:alert(1)). ![pic](https://example.org/a.png)
That is all there is to it, and the rest is practice, patience and a good memory for letters that stand for words."""


def main() -> None:
    """`python tests/chat_fakes.py PORT DATA_DIR [PAUSE [PASSWORD]]`: the real server over a scripted engine.

    With a password it is one for guests.

    Each line of its input is run as SQL on the connection that stores the conversations: what a disk does to it.
    """
    import signal
    import sys
    from pathlib import Path

    from chat import app
    from chat.session import Session
    from chat.store import Store

    port, folder, pause = int(sys.argv[1]), Path(sys.argv[2]), float((*sys.argv[3:], "0.05")[0])

    def load(progress: Callable[[hsd.LoadProgress], None]) -> ScriptedEngine:
        for done in range(3):
            progress(hsd.LoadProgress(INFO.models[done], "reading weights", done + 1, 3))
            time.sleep(0.3)
        return ScriptedEngine(poem, pause)

    session = Session(
        Store(folder / "chat.db"),
        load,
        title=INFO.title,
        models=INFO.models,
        examples=("How do I extract a tar.gz archive?", "What can you do?"),
    )
    password = sys.argv[4] if len(sys.argv) > 4 else None
    arguments = app.Arguments(port=port, host="0.0.0.0" if password else "127.0.0.1")
    session.guests = arguments.guests
    app.launch(session, arguments, password)
    session.start()
    print("ready", flush=True)
    for line in sys.stdin:
        print(session.store.rows(line), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
