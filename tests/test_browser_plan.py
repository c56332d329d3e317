"""Plan page, race and the form for families in a real browser, with the real engine and the built-in family."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chat_browser import PHONE, ask, ready, shoot, shooting, tab
from chat_server import Server, serving

import hsd

pytestmark = pytest.mark.browser

QUESTIONS = ("How do I extract a tar.gz archive?", "How do I find files larger than 100 MB?", "What can you do?")
NASTY = '"><img src=x onerror="document.title=1"><script>document.title=1</script>'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as server:
        yield server


def choose(page: Any, temperature: str = "0", plan: str = "tiny:3>large") -> None:
    """Settings that leave nothing to a planner whose numbers depend on how busy the machine is."""
    page.click("#settings button")
    page.get_by_label("number input for Temperature").fill(temperature)
    open_plan(page)
    pin(page, plan)
    page.wait_for_selector(f"#plan-top .chosen code:text-is('{plan}')")
    page.click("#plan-top [data-action=chat]")
    page.wait_for_selector("#message textarea")


def pin(page: Any, plan: str) -> None:
    page.fill("#pin-plan input, #pin-plan textarea", plan)
    page.click("#pin-set")


def open_plan(page: Any) -> None:
    page.click("#engine [data-action=plan]")
    page.wait_for_selector("#plan h1")
    page.wait_for_function("document.activeElement.matches('#plan h1')")


def test_the_plan_page_shows_what_is_measured_and_a_pin_holds(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        open_plan(page)
        nothing = server.stored("SELECT count(*) FROM messages") == [(0,)]
        assert ("No pair has been scored yet" in page.inner_text("#plan-top")) == nothing
        shoot(page, "plan-empty-light")
        page.click("#plan-top [data-action=chat]")
        page.wait_for_selector("#message textarea")
        ask(page, *QUESTIONS)
        open_plan(page)
        page.wait_for_selector("#plan .arcs .rate.used, #plan .arcs .rate")
        picture = page.inner_text("#plan-top")
        for words in ("tiny", "large", "ms per token", "lookup", "target", "standard error", "Not sure yet"):
            assert words in picture or words in page.text_content("#plan-top"), words
        assert "of 3 proposed" not in picture and "this family" in picture
        assert page.locator("#plan-rest .ranking tbody tr").count() > 5
        # Forecasts and outcomes; acceptances once a plan has drafted.
        assert page.locator("#plan-rest svg.plot").count() >= 1
        shoot(page, "plan-light")
        pin(page, "tiny:2 > nobody:3 > large")
        page.wait_for_selector("#pin-said .problem")
        assert "'nobody', which this family does not have" in page.inner_text("#pin-said")
        pin(page, "tiny:2 > large")
        page.wait_for_selector("#plan-top :text('Set by hand')")
        assert page.locator("#pin-said .problem").count() == 0
        page.reload()
        # A reload opens what was open.
        page.wait_for_selector("#plan-top :text('Set by hand')")
        latest = "SELECT settings FROM conversations ORDER BY created DESC"
        assert json.loads(server.stored(latest)[0][0])["plan"] == "tiny:2>large"
        page.click("#plan-top [data-action=chat]")
        ask(page, "Thanks!")
        assert json.loads(server.stored("SELECT stats FROM messages ORDER BY created")[-1][0])["plan"] == "tiny:2>large"
        open_plan(page)
        for _ in range(5):
            # What was just scored may be rendered between pressing the button of the mouse and letting it go.
            page.click("#plan-top summary")
            page.wait_for_timeout(200)
            if page.locator("#plan-top details[open]").count():
                break
        rivals = page.locator("#plan-rest [data-action=pin]:not([data-id='tiny:2>large'])")
        other = rivals.first.get_attribute("data-id")
        page.press(f"#plan-rest [data-action=pin][data-id='{other}']", "Enter")
        page.wait_for_selector(f"#plan-top .chosen code:text-is('{other}')")
        # What was rendered anew is as unfolded as before, and the keyboard is where it was.
        assert page.locator("#plan-top details[open]").count() == 1
        page.wait_for_function("document.activeElement.dataset.action === 'pin'")
        page.click("#pin-auto")
        page.wait_for_selector("#plan-top :text('Chosen by auto')")
        page.press("#plan-top h1", "Escape")
        page.wait_for_selector("#message textarea")


def test_a_race_is_run_replayed_and_there_after_a_reload(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        choose(page)
        ask(page, QUESTIONS[0])
        page.click(".meta summary")
        page.click("[data-action=race]")
        page.wait_for_selector("#race .verdict", timeout=60_000)
        page.wait_for_selector("#race .race.over", timeout=60_000)
        verdict = page.inner_text("#race .verdict")
        assert "by the plan" in verdict and "plainly" in verdict
        assert "have the same ids" in page.inner_text("#race-page") or "differ from token" in page.inner_text(
            "#race-page"
        )
        texts = page.locator("#race .lane .text").all_inner_texts()
        assert len(texts) == 2 and all(texts)
        shoot(page, "race-light")
        page.click("[data-action=replay]")
        page.wait_for_function("!document.querySelector('#race .race.over')")
        page.wait_for_selector("#race .race.over")
        assert page.locator("#race .lane .text").all_inner_texts() == texts
        page.reload()
        page.wait_for_selector("#race .verdict")
        assert page.inner_text("#race .verdict") == verdict
        bars = page.locator("#race .track i").evaluate_all("bars => bars.map((bar) => bar.offsetWidth)")
        # The slower run fills its bar; the other is as long as its time, whether the race was replayed or not.
        assert min(bars) > 0 and max(bars) == page.locator("#race .track").first.evaluate("track => track.offsetWidth")
        page.click("#race-page [data-action=chat]")
        page.wait_for_selector(".meta summary")
        assert "estimated" not in page.inner_text(".meta summary")
        page.click(".meta summary")
        assert "measured by decoding the same prompt plainly" in page.inner_text(".facts")
        baseline = server.stored("SELECT json_extract(stats, '$.baseline') FROM messages WHERE race IS NOT NULL")
        assert baseline == [("measured",)]


def test_a_race_is_stopped_and_leaves_the_reply_as_it_was(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        choose(page, "2")
        ask(page, "Tell me everything.")
        page.click(".meta summary")
        # Clicked the moment it is there: a small model needs a fraction of a second for both runs.
        page.evaluate(
            """() => new MutationObserver((_, o) => {
                const stop = document.querySelector("#race [data-action=race-stop]");
                if (stop) { o.disconnect(); stop.click(); }
            }).observe(document.getElementById("race"), { childList: true, subtree: true })"""
        )
        page.click("[data-action=race]")
        page.wait_for_selector("#race [data-action=race-start], #race .verdict", timeout=60_000)
        if page.locator("#race .verdict").count() == 0:
            assert "estimated" in page.inner_text("#history .meta summary") or page.locator(".where").count()
            counts = server.stored("SELECT count(*) FROM messages WHERE race IS NOT NULL")
            assert counts == [(1,)]


def test_a_family_is_added_read_back_and_refused_when_impossible(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        page.click("#own > button")
        page.fill("#own-name input, #own-name textarea", NASTY)
        page.fill("#own-target input, #own-target textarea", "builtin:large")
        page.click("#own-add")
        page.wait_for_selector("#own-said .problem")
        assert "cannot be the name of a family" in page.inner_text("#own-said")
        assert page.title() == "hsd chat" and page.locator("#own-said img, #own-said script").count() == 0
        page.fill("#own-name input, #own-name textarea", "two-of-ours")
        page.fill("#own-drafts textarea", "first: builtin:tiny")
        shoot(page, "family-light")
        page.click("#own-add")
        page.wait_for_selector("#own-said [role=status]")
        assert "first → large" in page.inner_text("#own-said")
        family = hsd.load_families(server.folder / "models.yaml")["two-of-ours"]
        assert [m.path for m in family.models] == ["builtin:tiny", "builtin:large"]
        page.reload()
        ready(page)
        page.click(".families summary")
        entry = page.wait_for_selector(".families [data-id=two-of-ours]", timeout=60_000)
        assert "first → large" in entry.inner_text()


def test_hostile_prompts_and_plans_stay_text(browser: Any, server: Server) -> None:
    with tab(browser, f"{server.address}#c=new") as page:
        ready(page)
        choose(page)
        ask(page, NASTY)
        page.click(".meta summary")
        page.click("[data-action=race]")
        page.wait_for_selector("#race .verdict", timeout=60_000)
        assert NASTY in page.inner_text("#race .asked")
        page.click("#race-page [data-action=chat]")
        open_plan(page)
        pin(page, NASTY)
        page.wait_for_selector("#pin-said .problem")
        assert page.locator("#plan img, #plan script, #race img, #race script").count() == 0
        assert page.title() == "hsd chat"


def test_views_fit_a_phone(browser: Any, server: Server) -> None:
    race = server.stored("SELECT id, conversation_id FROM messages WHERE race IS NOT NULL ORDER BY created")[0]
    looks = {"phone": {"viewport": PHONE}} | ({"dark": {"color_scheme": "dark"}} if shooting() else {})
    for name, options in looks.items():
        with tab(browser, server.address, **options) as page:
            ready(page)
            for view, part in (("plan", "#plan .planpage"), (f"race:{race[0]}", "#race .verdict")):
                page.goto("about:blank")
                page.goto(f"{server.address}#c={race[1]}&v={view}")
                page.wait_for_selector(part)
                page.wait_for_timeout(300)
                assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
                bars = page.locator("#race .track i").evaluate_all("bars => bars.map((bar) => bar.offsetWidth)")
                assert view == "plan" or min(bars) > 0
                shoot(page, f"{view.split(':')[0]}-{name}")
