"""What the page says, without a page: text that cannot break out, numbers with their units, the line under a reply."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from chat_fakes import INFO, POEM

import hsd
from chat.prompt import make_title
from chat.records import Conversation, Message
from chat.request import EngineView, Live
from chat.ui import engine, history, listing, reply, thinking
from chat.ui.growing import HOLD_SECONDS, Feed, between, young
from chat.ui.levels import looks
from chat.ui.text import Growing, count, markdown, plural, seconds

NASTY = '"><script>alert(1)</script><img src=x onerror=alert(1)>&'
STATS = {
    "seconds": 0.5,
    "first_token_seconds": 0.3,
    "tokens": 30,
    "tokens_per_second": 61.2,
    "speedup": 2.44,
    "baseline_seconds": 1.22,
    "baseline": "estimated",
    "plan": "lookup:2>tiny:3>large",
    "target_passes": 8,
    "prompt_tokens": 14,
    "reused_tokens": 4,
    "decode_seconds": 0.2,
    "forecast_ms_per_token": 3.0,
    "levels": [
        {"name": "lookup", "proposed": 10, "accepted": 4, "passes": 10, "seconds": 0.001, "width": 1.0},
        {"name": "large", "proposed": 0, "accepted": 0, "passes": 8, "seconds": 0.1, "width": 3.0},
    ],
}
KNOWN = looks(("tiny", "small", "large"), "large")


def message(**values: object) -> Message:
    return Message("id", "c", "p", "assistant", **{"text": "Hello.", "stats": STATS, **values})


def test_the_line_says_what_product_md_promises() -> None:
    assert reply.line(STATS) == "2.4× estimated · 61 tok/s · first token 0.3 s · lookup→tiny→large"
    assert reply.line({**STATS, "baseline": "measured"}).startswith("2.4× · ")


def test_below_one_the_line_says_so_in_words() -> None:
    assert reply.line({**STATS, "speedup": 0.8}).startswith("slower than plain decoding, 0.80× estimated · ")


def test_a_reply_without_a_baseline_or_a_draft_claims_no_speedup() -> None:
    assert reply.line({**STATS, "speedup": None}).startswith("61 tok/s")
    assert reply.line({**STATS, "plan": "large"}) == "61 tok/s · first token 0.3 s · large alone"


def test_details_name_units_and_denominators() -> None:
    html = reply.details(message(params={"plan": "auto"}), KNOWN)
    for words in (
        "3.75 (30 tokens in 8 passes)",
        "2.44×: 0.500 s here, 1.22 s by plain decoding (estimated from the target's measured step times)",
        "4 of 10",
        "3.0 ms per token expected, 6.9 ms came out",
        "chosen by auto",
    ):
        assert words in html


def test_provenance_marks_every_token_and_escapes_it() -> None:
    html = reply.provenance(message(provenance=("lookup", "large"), pieces=(NASTY, " b")), KNOWN)
    assert "<script" not in html and "<img" not in html and html.count('class="token ') == 2
    assert "lookup</span> proposed 1 of 2 tokens, 50%" in html
    assert "not recorded" in reply.provenance(message(provenance=("lookup",), pieces=()), KNOWN)


@pytest.mark.parametrize("state", ["done", "cancelled", "interrupted", "error", "running"])
def test_nothing_people_or_models_write_becomes_markup(state: str) -> None:
    turns = [
        replace(message(text=NASTY, state=state, error=NASTY), id=NASTY),
        replace(message(text=NASTY, stats=None), role="user"),
    ]
    for html in (history.history(turns, KNOWN), history.empty(NASTY, [NASTY])):
        assert "<script" not in html and "<img" not in html
    live = Live("m", NASTY, 3, "a:2>b", True, 0, False)
    assert "<script" not in "".join(history.running(live, Growing(), loading=False))


def test_a_markdown_reply_loads_nothing_and_runs_nothing() -> None:
    html = markdown(POEM + "\n\n[a](JaVaScRiPt:alert(1)) [b](data:text/html,x) <https://ok.example>\n\n    code <b>")
    assert "<img" not in html and "<script" not in html and "javascript:alert" not in html.replace("](javascript", "")
    assert 'href="data:' not in html and html.count('rel="noopener noreferrer"') == 3
    assert "<table>" in html and 'data-action="copy-code"' in html


FORMULAS = [
    ("so \\(a_1 * b_2 * c\\) holds", "a_1 * b_2 * c"),
    ("so $a_1 * b_2 * c$, then", "a_1 * b_2 * c"),
    ("\\[\n- x\n= <y>\n\\]", "- x\n= &lt;y&gt;"),
    ("text\n$$\n+ x^2\n\n- 1\n$$\nmore", "+ x^2\n\n- 1"),
    ("- item\n  $$x$$", "x"),
]


@pytest.mark.parametrize(("text", "tex"), FORMULAS)
def test_formulas_are_set_aside_from_markdown(text: str, tex: str) -> None:
    html = markdown(text)
    assert f'">{tex}</span>' in html and "<em>" not in html and html.count('class="math') == 1, html


def test_marks_without_an_end_take_no_time() -> None:
    begun = time.process_time()
    for text in (r"\( " * 20_000, "\\[\n" * 20_000, "$" * 40_000 + "x", "$$a\n\n" * 5_000):
        markdown(text)
    assert time.process_time() - begun < 20


@pytest.mark.parametrize(
    "text",
    ["from $5 to $10", "$HOME and $PATH", "cd $A/$B", "`$x$`", "    $x$", "$$", "a $ b $ c", "\\( open", "$$\nopen"],
)
def test_prices_and_variables_are_no_formulas(text: str) -> None:
    assert 'class="math' not in markdown(text)


@pytest.mark.parametrize(
    "text",
    [
        "copy ${A}/${B} there",
        "PATH=${A}:${B}/$(date)/$(id)",
        '"$A" and "$B", $@/$#',
        "US$5 and US$10$",
        "$5, or 6$ for two",
        "$100k-$200k, $3.50–$4.00",
        "EUR/$ and USD/$",
        "^foo$|^bar$",
        "[from $5](https://a.example/$) on",
        "costs $5 in `code$`",
        r"\$5 and 6\$",
        r"\[1\](https://a.example)",
        r"\( \) and \[ \]",
        "$.get(x);$.post(y), $_/$HOME",
        "$$ is the pid\n\nof $$ it",
    ],
)
def test_a_dollar_that_belongs_to_money_or_a_shell_stays_a_dollar(text: str) -> None:
    assert 'class="math' not in markdown(text)


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        (r"$\$0.60$", r"\$0.60"),
        (r"$x = 5\$$", r"x = 5\$"),
        (r"$$\$5$$", r"\$5"),
        ("设$x$为整数", "x"),
        ("H$_2$O", "_2"),
        (r"90$^\circ$C", r"^\circ"),
        (r"5$\times$ faster than $HOME", r"\times"),
        ("the $n$th", "n"),
        ("from $5 to ($x$)", "x"),
        ("it costs $10, so **$y$**", "y"),
        (r"$\text{if $k$ is odd}$", r"\text{if $k$ is odd}"),
        ("| a |\n|---|\n| $z$ |", "z"),
        ("$2 \\times 3$", "2 \\times 3"),
    ],
)
def test_a_formula_may_hold_a_dollar_or_stand_beside_one(text: str, tex: str) -> None:
    html = markdown(text)
    assert f'">{tex}</span>' in html and html.count('class="math') == 1, html


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nhm <b>\n</think>\n\nYes.", ("hm <b>", "Yes.", True)),
        ("<think>still", ("still", "", False)),
        ("<thi", ("", "", False)),
        ("hm\n</think>\n\nYes.", ("hm", "Yes.", True)),
        ("<think>\n\n</think>\n\nYes.", ("", "Yes.", True)),
        ("Write `</think>` at the end", ("", "Write `</think>` at the end", True)),
        ("", ("", "", True)),
    ],
)
def test_thinking_is_told_from_the_answer(text: str, expected: tuple) -> None:
    assert thinking.split(message(text=text)) == expected[:2]
    pages = [history.history([message(text=text)], KNOWN)]
    if not text.startswith("hm"):  # one of an earlier version
        assert hsd.split_thinking(text) == expected
        pages += history.running(Live("m", text, 3, "a:2>b", True, 0, False), Growing(), loading=False)
    for html in (pages[0], "".join(pages[1:]) or pages[0]):
        assert "<b>" not in html and ('class="think"' in html) is bool(expected[0])


@pytest.mark.parametrize(
    "text",
    [
        "Close it:\n\n```xml\n</think>\n```\n\nThat is all.",
        "Close it:\n\n```xml\n<a>\n</think>\n\n</a>\n```\n\nThat is all.",
        "Close it:\n\n    </think>\n\nThat is all.",
        "> </think>\n\nis the mark, and <think> opens it.",
        "A line\n</think>\nof its own.",
        "Both:\n<think>\n</think>\n\nThat is all.",
    ],
)
def test_a_mark_inside_an_answer_folds_nothing(text: str) -> None:
    live = history.running(Live("m", text, 3, "a:2>b", True, 0, False), Growing(), loading=False)
    for html in (history.history([message(text=text)], KNOWN), "".join(live)):
        assert 'class="think"' not in html and "&lt;/think&gt;" in html
    assert make_title("Hi!", text).startswith("Hi! · ")


def test_only_a_reply_of_an_earlier_version_may_lack_the_opening_mark() -> None:
    text = "hm\n</think>\n\nYes."
    old, new = message(text=text), message(text=text, stats={**message().stats, "marked": True})
    assert thinking.split(old) == ("hm", "Yes.") and thinking.split(new) == ("", text)


def test_a_page_is_told_what_is_new_and_all_of_it_after_an_answer_was_lost() -> None:
    text, feed = f"<think>\nhm\n</think>\n\n{POEM}", Feed("m")
    shown, mark, sent = "", 0, 0
    for end in range(1, len(text) + 1, 5):
        told = feed.answer(Live("m", text[:end], 3, "a:2>b", True, 0, False), mark, loading=False)
        if end == 301:
            continue  # lost on its way
        shown, mark, sent = shown[: told["keep"]] + told["settled"], told["mark"], sent + len(told["settled"])
    told = feed.answer(Live("m", text, 3, "a:2>b", True, 0, False), mark, loading=False)
    shown = shown[: told["keep"]] + told["settled"]
    answer = re.sub(r'<p class="line">.*|<div class="prose more">|</div>$', "", told["rest"])
    assert shown + answer.removesuffix("</div>") == markdown(POEM) and "hm" in told["lead"]
    assert told["keep"] > len(markdown(POEM)) / 2 and sent <= 2 * len(shown)


def test_a_reply_is_held_back_for_a_moment_and_one_that_waits_is_not() -> None:
    def live(since: float) -> Live:
        return Live("m", "", 0, "", bool(since), 0, False, since)

    assert 0 < young(live(time.monotonic())) <= HOLD_SECONDS
    assert young(live(time.monotonic() - 1)) < 0 and young(live(0.0)) == 0 and young(None) == 0


def test_a_page_asks_less_often_where_it_takes_the_models_cores() -> None:
    assert between(INFO) > between(replace(INFO, device="cuda:0")) == between(None)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\r", "\r\n"])
def test_no_text_is_shown_twice_whatever_separates_its_lines(mark: str) -> None:
    text = f"# one{mark}two\n\nthree{mark}{mark}four\n\n- five\n\n```\nsix{mark}seven\n```\n\neight"
    growing, tail = Growing(), ""
    for end in range(0, len(text) + 1, 3):
        tail = growing.add(text[:end])
    tail = growing.add(text)
    assert growing.settled + tail == markdown(text) and growing.settled


@pytest.mark.parametrize("number", ["2. two", "10. ten", "999999999. last", "2 is no item"])
def test_a_list_goes_on_behind_a_blank_line(number: str) -> None:
    text, growing, tail = f"1. one\n\n{number}\n\nend", Growing(), ""
    for end in range(1, len(text) + 1):
        tail = growing.add(text[:end])
    assert growing.settled + tail == markdown(text) and growing.settled


def test_text_that_grows_ends_up_as_the_same_markdown() -> None:
    for step in (1, 7, 50):
        growing, tail = Growing(), ""
        for end in range(step, len(POEM) + step, step):
            tail = growing.add(POEM[:end])
        assert growing.settled + tail == markdown(POEM)
        assert growing.settled
        assert growing.add("Something else.") == markdown("Something else.") and growing.settled == ""


def test_long_conversations_show_their_end_and_offer_the_rest() -> None:
    turns = [replace(message(stats=None), id=f"m{i}") for i in range(250)]
    html = history.history(turns, KNOWN, shown=100)
    assert html.count("<article") == 100 and "Show 150 earlier messages" in html and 'data-id="m249"' in html


@pytest.mark.parametrize(
    ("state", "text", "offered"),
    [
        ("done", "x", False),
        ("cancelled", "x", True),
        ("interrupted", "x", True),
        ("interrupted", "", False),
        ("error", "x", True),
        ("running", "x", False),
    ],
)
def test_what_was_cut_off_is_offered_for_continuation(state: str, text: str, offered: bool) -> None:
    html = history.history([message(text=text, state=state)], KNOWN)
    assert ('data-action="resume"' in html) is offered
    assert 'data-action="resume"' in history.history([message(finish_reason="length")], KNOWN)
    # Also where more was said after it.
    answered = history.history([message(text=text, state=state), Message("q", "c", "id", "user", "And?")], KNOWN)
    assert ('data-action="resume"' in answered) is offered


def test_the_list_groups_pinned_ones_and_escapes_titles() -> None:
    first = Conversation("a", NASTY, None, {}, True, 1.0, 1.0)
    html = listing.listing([first, replace(first, id="b", pinned=False)], "a", "", ("c", NASTY))
    assert "<h3>Pinned</h3>" in html and "<h3>Older</h3>" in html and "<script" not in html and "<img" not in html
    assert html.count("Unpin") == 2


def test_versions_of_a_message_can_be_leafed_through() -> None:
    turns = [replace(message(), id="u", role="user"), message()]
    html = history.history(turns, KNOWN, places={"u": (1, 3), "id": (2, 2)})
    assert "1/3" in html and "2/2" in html and html.count("disabled") == 2
    assert "previous" not in history.history(turns, KNOWN)


def test_the_engine_column_says_what_is_loading_and_what_was_left_out() -> None:
    loading = EngineView("loading", hsd.LoadProgress("big", "reading weights", 1, 4), seconds=3.2)
    assert "Reading weights, big</span> · 3.2 s" in engine.column(loading, "Title", [], {})
    assert engine.status(loading) == "reading weights, big 25%"
    assert 'data-action="load"' in engine.column(EngineView("unloaded"), "", [], {})
    failed = EngineView("failed", error=f"No weights {NASTY}.")
    assert "<script" not in engine.column(failed, NASTY, [], {}) and 'role="alert"' in engine.column(failed, "", [], {})
    sizes, left_out = {"large": 25_000_000}, (hsd.Dropped("x", "why"),)
    info = hsd.FamilyInfo("f", "F", ("tiny", "large"), "large", 512, "cpu", sizes, left_out)
    column = engine.column(EngineView("ready", info=info, plan="tiny:2>large"), "F", [message()], KNOWN)
    assert "Context of this" not in column
    here = {"prompt_tokens": 100, "tokens": 28, "dropped_turns": 1}
    column = engine.column(EngineView("ready", info=info, plan="tiny:2>large"), "F", [message()], KNOWN, here)
    assert "128 of 512 tokens; 1 old turn left out" in column and 'aria-valuenow="25"' in column
    assert "25M parameters" in column and "<b>x</b> is left out: why" in column and "median 2.4×" in column


def test_the_engine_column_shows_replies_of_its_family_alone() -> None:
    shown = {}
    for models in (("tiny", "large"), ("tiny", "large", "huge"), ("large", "tiny"), ("small", "large")):
        info = hsd.FamilyInfo("f", "F", models, models[-1], 512, "cpu", {})
        shown[models] = engine.column(EngineView("ready", info=info), "F", [message()], KNOWN)
    assert [m for m, column in shown.items() if "median 2.4×" in column] == [("tiny", "large")]
    assert [m for m, column in shown.items() if "4 of 10 proposed" in column] == [("tiny", "large")]
    assert [m for m, column in shown.items() if "lookup:2" in column] == [("tiny", "large")]


def test_the_head_says_what_the_family_takes_of_the_memory() -> None:
    memory = hsd.MemoryFit(
        "f", "the GPU", True, f"It takes {NASTY}.", (hsd.ModelMemory("big", 8.1, 1.0),), total_gb=24.2, free_gb=20
    )
    info = hsd.FamilyInfo("f", "F", ("big",), "big", 512, "cuda", {"big": 8_000_000_000}, memory=memory)
    head = engine.room(EngineView("ready", info=info))
    assert "· 9.1 of 24 GB" in head and "It takes" in head and "<script" not in head
    assert engine.room(EngineView("unloaded", info=info)) == engine.room(EngineView("loading")) == ""
    assert engine.room(EngineView("ready", info=replace(info, memory=None))) == ""


def test_levels_differ_in_more_than_colour() -> None:
    names = looks([f"m{i}" for i in range(6)])
    assert names["m5"] == "blue" and len(set(names.values())) == 7


def test_numbers_as_people_write_them() -> None:
    assert [seconds(v) for v in (0.004, 0.3, 3.21, 12.4, 125)] == ["4 ms", "0.3 s", "3.2 s", "12 s", "2 min 5 s"]
    assert [count(v) for v in (950, 48_000, 700_000, 25e6, 1.7e9)] == ["950", "48k", "0.7M", "25M", "1.7B"]
    assert [plural(n, w) for n, w in ((1, "pass"), (2, "pass"), (3, "reply"))] == ["1 pass", "2 passes", "3 replies"]


def test_neither_torch_nor_gradio_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, chat.__main__; assert not {'torch', 'gradio'} & set(sys.modules); "
        "import chat.ui.page; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent)


def test_every_test_that_the_documentation_names_exists() -> None:
    folder = Path(__file__).parent
    text = (folder.parent / "docs" / "chat.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)::(\w+)`", text)
    assert len(named) > 40
    for file, test in named:
        name = file.replace("b_", "browser_") if file.startswith("b_") else re.sub("^c_", "chat_", file)
        source = (folder / f"test_{name}.py").read_text(encoding="utf-8")
        assert f"def test_{test}(" in source, f"{file}::{test}"


def test_plain_replies_are_no_speed_ups() -> None:
    """Of a reply that was decoded plainly the number says how far the estimate of plain decoding is off."""
    from types import SimpleNamespace

    from chat.ui.engine import _speedups

    def reply(plan: str, speedup: float) -> SimpleNamespace:
        return SimpleNamespace(stats={"plan": plan, "speedup": speedup})

    shown = _speedups([reply("big", 0.2), reply("tiny:3>big", 2.0), reply("big", 1.3)])
    assert "last 1 reply with drafts" in shown and "median 2.0×, last 2.0×" in shown
    assert _speedups([reply("big", 0.2)]) == ""
