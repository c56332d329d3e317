"""What the plan page rests on, without a page: what the engine knows, what replies did, plans by hand, own families."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models as tiny
import pytest
from chat_fakes import ScriptedEngine, poem
from chat_waiting import until

import hsd
from chat import plans
from chat.own_families import OwnFamilies
from chat.records import Message
from chat.request import EngineView
from chat.session import Session
from chat.settings import Settings
from chat.store import Store
from chat.ui import plan as ui
from chat.ui import plots
from chat.ui.levels import looks
from chat.ui.text import escape

NASTY = '"><script>alert(1)</script><img src=x onerror=alert(1)>&'
MODELS = ("small", "medium", "big")
TONES = looks(MODELS)
GREEDY = Settings(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    def load(progress: Any) -> hsd.Engine:
        return hsd.Engine.from_models(tiny.related(count=3, noise=0.03), tiny.ByteTokenizer())

    session = Session(Store(tmp_path_factory.mktemp("data") / "chat.db"), load)
    session.start()
    until(lambda: session.engine.state == "ready")
    yield session
    session.close()


def ask(session: Session, text: str, settings: Settings = GREEDY) -> Message:
    conversation = session.send(None, text, settings)
    until(lambda: session.live(conversation) is None)
    return session.snapshot(conversation).messages[-1]


@pytest.fixture(scope="module")
def known(session: Session) -> plans.Known:
    for text in ("hello", "hello you", "hello there"):
        ask(session, text)

    def scored() -> bool:
        known = session.engine.known
        return bool(known and known.explained["acceptances"] and known.replies >= 3)

    until(scored)
    assert session.engine.known is not None
    return session.engine.known


def info(session: Session) -> hsd.FamilyInfo:
    assert session.engine.info is not None
    return session.engine.info


# What the engine knows


def test_before_the_first_reply_costs_are_known_and_acceptances_are_not(session: Session) -> None:
    until(lambda: session.engine.known is not None)
    known = session.engine.known
    assert known is not None and abs(known.at - time.time()) < 60
    html = ui.top(session.engine, known, "auto", TONES)
    assert known.explained["acceptances"] or "No pair has been scored yet" in html
    assert [level.name for level in plans.levels(info(session), known, None)] == ["lookup", *MODELS]
    assert all(level.ms and level.ms > 0 for level in plans.levels(info(session), known, None))


def test_the_page_shows_measured_pairs_with_their_denominators(session: Session, known: plans.Known) -> None:
    edges = plans.edges(info(session), known, hsd.Plan.parse(known.explained["plan"]))
    assert {(e.draft, e.verifier) for e in edges} >= {("small", "big"), ("medium", "big"), ("lookup", "small")}
    html = ui.top(session.engine, known, "auto", TONES)
    for edge in edges:
        assert f"{100 * edge.rate:.0f}% of {edge.positions:,}" in html and edge.positions > 0
    assert f"<code>{escape(known.explained['plan'])}</code>" in html
    assert escape(known.explained["reason"]) in html
    assert "greedy replies (temperature 0)" in html and "Not sure yet" in html
    # As old as the engine's measurements, not as the page.
    assert time.strftime("As of %d %b %H:%M", time.localtime(known.at)) in html
    assert set(known.measured) == set(MODELS) and f"after {known.replies} replies of this family" in html


def test_the_ranking_says_why_each_other_plan_lost(session: Session, known: plans.Known) -> None:
    ranked = plans.ranking(known)
    assert [rank.ms for rank in ranked] == sorted(rank.ms for rank in ranked)
    assert sum(not rank.why for rank in ranked) == 1 and any(rank.plan == "big" for rank in ranked)
    html = ui.rest(session.engine, known, (), TONES)
    for rank in ranked:
        assert f'data-id="{escape(rank.plan)}"' in html
    slow = next((rank for rank in ranked if rank.speedup < 0.99), None)
    assert slow is None or f"slower, {slow.speedup:.2f}×" in html
    assert ui.against_plain(0.8) == "slower than plain decoding, 0.80×"


def test_a_plan_by_hand_has_the_planners_own_forecast(known: plans.Known) -> None:
    for rank in plans.ranking(known)[:3]:
        assert plans.forecast(known, rank.plan) == rank.ms
    odd = "small:7>medium:9>big"
    rates = {tuple(pair.split(">")): e["rate"] for pair, e in known.explained["acceptances"].items()}
    assert plans.forecast(known, odd) == pytest.approx(
        hsd.planning.expected_ms_per_token(hsd.Plan.parse(odd), known.explained["costs_ms"], rates)
    )
    unscored = plans.Known({**known.explained, "acceptances": {}})
    assert plans.forecast(unscored, odd) is None


def test_a_busy_engine_leaves_the_last_known_numbers_on_the_page(session: Session, known: plans.Known) -> None:
    conversation = session.send(None, "go on", Settings(temperature=1.5, max_tokens=400, plan="big"))
    until(lambda: (live := session.live(conversation)) is not None and live.started)
    begun = time.monotonic()
    html = ui.top(session.engine, session.engine.known, "auto", TONES)
    assert time.monotonic() - begun < 0.5 and "ms per token" in html
    session.stop(conversation)
    until(lambda: session.live(conversation) is None)


def test_an_engine_that_cannot_explain_costs_nothing(tmp_path: Path) -> None:
    class Broken(ScriptedEngine):
        def explain(self, temperature: float) -> dict[str, Any]:
            raise hsd.HsdError("No.")

    for engine in (ScriptedEngine(poem), Broken(poem)):
        assert plans.look_up(engine, 0.7) is None
    view = EngineView(state="ready", info=ScriptedEngine(poem).info)
    assert "Nothing is measured yet" in ui.top(view, None, "auto", looks(view.info.models))
    assert "Auto decides with the first reply" in ui.top(view, None, "auto", {})
    assert "middle" in ui.rest(view, None, (), {}) and "its vocabulary is not the target" in ui.rest(view, None, (), {})
    assert "the family is not loaded" in ui.top(EngineView(), None, "auto", {})
    assert "No GPU" in ui.top(EngineView(state="failed", error="No GPU."), None, "auto", {})


# What the last replies did


def reply(plan: str, forecast: float | None, outcome: float, *levels: tuple[str, int, int]) -> Message:
    rows = [{"name": n, "proposed": p, "accepted": a, "passes": 1, "seconds": 0.1} for n, p, a in levels]
    stats = {"plan": plan, "forecast_ms_per_token": forecast, "tokens": 11, "decode_seconds": outcome / 100}
    return Message("i", "c", None, "assistant", "", stats={**stats, "levels": rows})


REPLIES = [
    reply("small:2>big", 2.0, 4.0, ("small", 10, 7), ("big", 0, 0)),
    reply("big", None, 5.0, ("big", 0, 0)),
    reply("lookup:1>small:3>big", 2.0, 1.0, ("lookup", 4, 1), ("small", 20, 15), ("big", 0, 0)),
]


def test_acceptance_over_replies_keeps_each_pairs_denominators() -> None:
    series = plans.accepted(REPLIES)
    assert series["small", "big"] == [plans.Accepted(0, 7, 10), plans.Accepted(2, 15, 20)]
    assert series["lookup", "small"] == [plans.Accepted(2, 1, 4)]
    svg = plots.acceptance(series, 3, TONES)
    assert "small to big, reply 1: 7 of 10 accepted" in svg and svg.count('class="mark ') == 3
    view = EngineView(state="ready", info=hsd.FamilyInfo("f", "F", MODELS, "big", 64, "cpu"))
    html = ui.rest(view, None, REPLIES, TONES)
    assert "22 of 30 proposed tokens in 2 replies" in html and "1 of 4 proposed tokens in 1 reply" in html


def test_forecast_and_outcome_are_per_token_after_the_first() -> None:
    points = plans.outcomes(REPLIES)
    assert [(p.forecast_ms, p.outcome_ms) for p in points] == [(2.0, 4.0), (2.0, 1.0)]
    assert plans.median_error(points) == pytest.approx(1.0)
    svg = plots.outcome(points, TONES, ["small", "small"])
    assert "small:2&gt;big: 2.00 ms forecast, 4.00 ms came out" in svg
    assert plans.median_error([]) is None


def test_the_drawing_fits_any_range_and_any_number_of_levels() -> None:
    for low, high in ((0.013, 0.014), (1, 1), (0.5, 900)):
        svg = plots.outcome([plans.Outcome("big", low, high)], {}, ["big"])
        numbers = [float(n) for n in re.findall(r'c[xy]="([\d.-]+)"', svg)]
        assert all(0 <= n <= 420 for n in numbers)
    assert plots.acceptance({("a", "b"): [plans.Accepted(0, 0, 1)]}, 1, {}).startswith("<svg")
    assert len({plots.mark(tone, 0, 0).split(">", 1)[1] for tone in plots.MARKS}) == len(plots.MARKS)


def test_names_cannot_break_out_of_the_pictures() -> None:
    level = plans.Level(NASTY, 1.0, 5, True, True, 2, 0.0)
    edge = plans.Edge(NASTY, NASTY, 0.5, 0.1, 9, False, True)
    pieces = [
        plots.family([level], [edge], {}),
        plots.acceptance({(NASTY, NASTY): [plans.Accepted(0, 1, 2)]}, 1, {}),
        plots.outcome([plans.Outcome(NASTY, 1.0, 2.0)], {}, [NASTY]),
    ]
    bad = hsd.FamilyInfo("f", NASTY, MODELS, "big", 64, "cpu", dropped=(hsd.Dropped(NASTY, NASTY),), notes=(NASTY,))
    view = EngineView(state="ready", info=bad)
    pieces += [ui.top(view, None, "auto", {}), ui.rest(view, None, REPLIES, {})]
    pieces.append(ui.top(EngineView(state="failed", error=NASTY), None, "auto", {}))
    for html in pieces:
        assert not re.search(r"<(script|img)", html) and "&lt;script&gt;" in html


# A plan by hand


def test_a_pinned_plan_is_stored_with_its_conversation_and_run(session: Session) -> None:
    first = ask(session, "hello")
    assert session.pin_plan(first.conversation_id, " small:2 > big ") == "small:2>big"
    stored = session.conversation(first.conversation_id).settings
    assert stored["plan"] == "small:2>big" and stored["temperature"] == 0.0
    session.send(first.conversation_id, "and?", Settings.from_dict(stored))
    until(lambda: session.live(first.conversation_id) is None)
    assert session.snapshot(first.conversation_id).messages[-1].stats["plan"] == "small:2>big"
    html = ui.top(session.engine, session.engine.known, "small:2>big", TONES)
    assert "Set by hand" in html and "small drafts up to 2 tokens" in html
    assert session.pin_plan(first.conversation_id, "") == "auto"
    assert session.conversation(first.conversation_id).settings["plan"] == "auto"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nobody:2>big", "'nobody'"),
        ("big:2>small", "ends with 'small'"),
        ("medium:2>small:2>big", "cheapest first"),
        ("small>big", "threshold"),
        ("small:65>big", "65"),
        (NASTY, "not a level"),
    ],
)
def test_an_impossible_plan_is_one_sentence_and_stores_nothing(session: Session, text: str, words: str) -> None:
    conversation = ask(session, "hello").conversation_id
    before = session.conversation(conversation).settings
    with pytest.raises(hsd.ConfigError, match=words):
        session.pin_plan(conversation, text)
    assert session.conversation(conversation).settings == before


def test_a_plan_is_told_in_words() -> None:
    assert ui.in_words(hsd.Plan.parse("big")) == "big decodes plainly, one token a pass."
    assert ui.in_words(hsd.Plan.parse("lookup:1>small:4>big")) == (
        "lookup drafts up to 1 token, small checks them and goes on until it holds 4, big verifies all in one pass."
    )


# Families of one's own


def test_an_added_family_is_read_by_the_library_and_listed(tmp_path: Path) -> None:
    own = OwnFamilies(tmp_path)
    family = own.add("mine", "org/large", "org/tiny\nsecond: org/small\n", "none", "nf4")
    assert [m.name for m in family.models] == ["tiny", "second", "large"] and family.target == "large"
    assert [m.quantization for m in family.models] == ["nf4", "nf4", "none"]
    own.add("other", "Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B", "nf4")
    choices = OwnFamilies(tmp_path).choices()
    assert list(choices)[-2:] == ["mine", "other"] and choices["builtin"].reference == "builtin"
    assert choices["mine"].own and choices["mine"].reference == f"{own.path}#mine"
    assert hsd.load_families(own.path)["other"].models[1].quantization == "nf4"
    own.add("small", "builtin:small", "builtin:tiny")
    with hsd.Engine.load(own.choices()["small"].reference, device="cpu", data_dir=tmp_path) as engine:
        assert engine.info.models == ("tiny", "small")


@pytest.mark.parametrize("folder", ["C# notes", "a.yaml#b", "50% ?x=1", "käse"])
def test_an_added_family_is_found_whatever_its_folder_is_called(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    own = OwnFamilies(tmp_path / folder)
    for name in ("mine", "x.yaml"):
        own.add(name, "builtin:small")
        assert hsd.find_family(own.choices()[name].reference).name == name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
def test_a_family_is_added_to_a_file_that_an_editor_of_windows_wrote(tmp_path: Path, encoding: str) -> None:
    written = "# für mich\r\nfamilies:\r\n  first:\r\n    title: Grüße\r\n    models: {a: org/a}\r\n"
    (tmp_path / "models.yaml").write_bytes(written.encode(encoding))
    OwnFamilies(tmp_path).add("second", "org/b")
    families = hsd.load_families(tmp_path / "models.yaml")
    assert list(families) == ["first", "second"] and families["first"].title == "Grüße"
    assert "# für mich" in (tmp_path / "models.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("", "a/b"), "has no name"),
        (("two words", "a/b"), "cannot be the name"),
        (("builtin", "a/b"), "already"),
        (("x", " "), "no target"),
        (("x", "a/b", "/nowhere/at/all"), "no model in /nowhere"),
        (("x", "a/b", "c d: e/f"), "'c d'"),
        (("x", "a/b", "lookup: e/f"), "taken by the level"),
        (("x", "a/b", "c/b"), "are called 'b'"),
        (("x", "a/b", "", "int3"), "int3"),
    ],
)
def test_what_cannot_be_added_is_said_and_nothing_is_written(tmp_path: Path, values: Any, words: str) -> None:
    own = OwnFamilies(tmp_path)
    with pytest.raises(hsd.ConfigError, match=re.escape(words)):
        own.add(*values)
    assert list(tmp_path.iterdir()) == []


def test_what_a_person_wrote_into_the_file_stays(tmp_path: Path) -> None:
    own = OwnFamilies(tmp_path)
    own.path.write_text("families:\n  a:  # by hand\n    models: {m: x/y}\n")
    own.add("b", "q/r")
    assert "# by hand" in own.path.read_text() and list(hsd.load_families(own.path)) == ["a", "b"]
    own.path.write_text("families: {a: {models: {m: x/y}}}\n")
    own.add("b", "q/r")
    assert list(hsd.load_families(own.path)) == ["a", "b"]
    own.path.write_text("families: [broken\n")
    with pytest.raises(hsd.ConfigError, match="not valid YAML"):
        own.add("c", "q/r")
    assert own.path.read_text() == "families: [broken\n"


def test_two_tabs_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    own = OwnFamilies(tmp_path)
    threads = [threading.Thread(target=own.add, args=(f"f{i}", "a/b")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hsd.load_families(own.path)) == 8
