"""The page in a real browser, as somebody uses it: clicks, keys, and what is on the screen then."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from octavo.testing import Reply
from tests.openai.live import Live, live, toy
from tests.support.browser import browser

MARKDOWN = """A **list** with `code`:

1. first
2. second
   - inner

```python
def f(x):
    return "<b>" + x
```

| a | b |
|---|--:|
| 1 | 2 |

> quoted

See [there](https://example.org/a_(b)) and https://example.org."""
HOSTILE = """<img src=x onerror="window.pwned=1"> <script>window.pwned=2</script>
[a](javascript:window.pwned=3) [b](data:text/html,x) ![c](https://example.org/c.png) <javascript:window.pwned=4>

```html"onclick="window.pwned=5
</code></pre><script>window.pwned=6</script>
```

| <b onclick=pwned=7>h</b> |
|---|
| <svg onload=window.pwned=8> |"""
SCRIPT: dict[str, Reply | str] = {
    "markdown": MARKDOWN,
    "hostile": HOSTILE,
    "slow": Reply(["word "] * 2000, delay=0.02),
    "full": Reply(fail="overloaded", message="4096 requests are waiting"),
    "halfway": Reply("some words", fail="failed", message="the model failed on this request"),
    "lines": "\n\n".join(f"Paragraph {i}." for i in range(80)),
}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(toy(SCRIPT)) as made:
        yield made


@contextmanager
def opened(chromium: Browser, url: str, *, says: str = "Failed to load resource", **options: Any) -> Iterator[Page]:
    """The page with an empty storage. By the end its console must hold no line that doesn't begin with `says`: by
    default the browser's own of a refused request, whose meaning is shown on the page."""
    context = chromium.new_context(**options)
    context.set_default_timeout(10_000)
    said: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
    assert [line for line in said if not line.startswith(says)] == []


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).last.fill(text)
    page.keyboard.press("Enter")


def answer(page: Page) -> Any:
    """The last answer, complete."""
    last = page.locator(".message.assistant").last
    expect(last).to_have_attribute("aria-busy", "false")
    return last


def turns(request: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in request.messages]


def test_an_answer_streams_in_as_markdown(chromium: Browser, server: Live) -> None:
    with opened(chromium, server.url) as page:
        say(page, "markdown")
        prose = answer(page).locator(".prose")
        shown = prose.evaluate("element => [...element.children].map(child => child.tagName)")
        assert shown == ["P", "OL", "FIGURE", "DIV", "BLOCKQUOTE", "P"]
        assert prose.locator("pre").inner_text() == 'def f(x):\n    return "<b>" + x'
        assert prose.locator("ol > li > ul > li").inner_text() == "inner"
        assert prose.locator("td.right").inner_text() == "2"
        assert prose.locator("a").evaluate_all("links => links.map(link => link.href)") == [
            "https://example.org/a_(b)",
            "https://example.org/",
        ]
        assert re.fullmatch(
            r"\d+ tokens · [\d.]+ tokens/s · first after [\d.]+ s", answer(page).locator(".note").inner_text()
        )
        expect(page.locator("#announcer")).to_contain_text("Answer complete.")
        expect(page.locator("#title")).to_have_text("markdown")


def test_thoughts_are_folded_away(chromium: Browser) -> None:
    script = {"ponder": "<think>Let me see.</think>The answer."}
    with live(toy(script), reasoning_parser="think") as server, opened(chromium, server.url) as page:
        say(page, "ponder")
        expect(answer(page).locator(".prose")).to_have_text("The answer.")
        expect(page.get_by_text("Let me see.")).to_be_hidden()
        page.get_by_text("Thoughts").click()
        expect(page.get_by_text("Let me see.")).to_be_visible()


def test_text_of_a_model_is_never_run_or_fetched(chromium: Browser, server: Live) -> None:
    with opened(chromium, server.url, says="This document requires 'TrustedHTML' assignment") as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        say(page, "hostile")
        prose = answer(page).locator(".prose")
        assert "onerror=" in prose.inner_text()
        assert prose.locator("img, script, svg, b, [onclick], [onload]").count() == 0
        assert prose.locator("a").evaluate_all("links => links.map(link => link.href)") == ["https://example.org/c.png"]
        assert page.evaluate("window.pwned") is None
        assert all(url.startswith(server.url) for url in asked)
        # Were a string to become HTML all the same, the browser would refuse it.
        refused = page.evaluate("() => { try { document.body.innerHTML = '<b>'; } catch (e) { return e.name; } }")
        assert refused == "TypeError"


def test_stop_ends_the_request_and_keeps_what_came(chromium: Browser) -> None:
    with live(toy(SCRIPT)) as server, opened(chromium, server.url) as page:
        for end in (lambda: page.get_by_label("Stop the answer").click(), lambda: page.keyboard.press("Escape")):
            say(page, "slow")
            expect(page.locator(".prose").last).to_contain_text("word word")
            end()
            expect(answer(page).locator(".note")).to_contain_text("stopped")
            expect(page.get_by_label("Send")).to_be_visible()
            assert "word word" in page.locator(".prose").last.inner_text()
        say(page, "next")
        assert answer(page).locator(".prose").inner_text() == "anything"
        assert len(server.engine.aborted) == 2


def test_an_answer_is_given_anew_and_a_message_edited(chromium: Browser) -> None:
    with live(toy({**SCRIPT, "one": "first", "two": "second"})) as server, opened(chromium, server.url) as page:
        say(page, "one")
        answer(page).get_by_text("Regenerate").click()
        answer(page)
        say(page, "two")
        answer(page)
        page.keyboard.press("ArrowUp")
        field = page.get_by_label("Your message")
        expect(field).to_have_value("two")
        field.fill("markdown")
        page.keyboard.press("Enter")
        expect(answer(page).locator("pre")).to_be_visible()
        requests = [turns(request) for request in server.engine.requests]
        first = [("user", "one")]
        assert requests == [first, first, [*first, ("assistant", "first"), ("user", "two")],
                            [*first, ("assistant", "first"), ("user", "markdown")]]  # fmt: skip
        page.locator(".message.user").first.hover()
        page.get_by_role("button", name="Edit").first.click()
        page.keyboard.press("Escape")  # leaves it as it was
        assert page.locator(".message").count() == 4


def test_settings_reach_the_request_and_stay(chromium: Browser) -> None:
    with live(toy(SCRIPT)) as server, opened(chromium, server.url) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("Be brief.")
        for label, value in (("Temperature", "0.25"), ("Longest answer, tokens", "7"), ("Top k", "5"), ("Seed", "11")):
            page.get_by_label(label).fill(value)
        page.get_by_label("Stop texts, one a line").fill("END\nSTOP")
        page.get_by_label("Dark").check()
        page.get_by_role("button", name="Done").click()
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
        say(page, "hello")
        answer(page)
        (request,) = server.engine.requests
        assert turns(request) == [("system", "Be brief."), ("user", "hello")]
        params = request.params
        assert (params.temperature, params.max_tokens, params.top_k, params.seed) == (0.25, 7, 5, 11)
        assert (params.stop, params.top_p) == (("END", "STOP"), 1.0)


def test_chats_outlive_the_page_and_can_be_deleted(chromium: Browser, server: Live) -> None:
    with opened(chromium, server.url) as page:
        say(page, "alpha")
        answer(page)
        page.get_by_role("button", name="New chat").first.click()
        say(page, "beta")
        answer(page)
        page.reload()
        chats = page.locator("#chats .chat")
        expect(chats).to_have_text(["beta", "alpha"])
        chats.last.click()
        expect(page.locator(".said")).to_have_text("alpha")
        expect(page.locator(".prose")).to_have_text("anything")
        say(page, "more")  # goes on where it was
        answer(page)
        assert turns(server.engine.requests[-1])[0] == ("user", "alpha")
        page.get_by_label("Delete the chat alpha").click()
        expect(chats).to_have_text(["beta"])
        expect(page.locator(".message")).to_have_count(0)


def test_an_answer_goes_on_while_another_chat_is_shown(chromium: Browser, server: Live) -> None:
    with opened(chromium, server.url) as page:
        say(page, "slow")
        expect(page.locator(".prose")).to_contain_text("word")
        page.get_by_role("button", name="New chat").first.click()
        say(page, "hello")
        assert answer(page).locator(".prose").inner_text() == "anything"
        page.locator("#chats .chat", has_text="slow").click()
        before = page.locator(".prose").inner_text().count("word")
        # Not wait_for_function: the page's policy forbids to evaluate a string.
        expect(page.locator(".prose")).to_have_text(re.compile(rf"(word.*){{{before + 1}}}", re.DOTALL))
        page.keyboard.press("Escape")
        expect(answer(page).locator(".note")).to_contain_text("stopped")


def test_a_key_is_asked_for_and_only_there(chromium: Browser) -> None:
    with live(toy(SCRIPT), api_keys=("sesame",)) as server, opened(chromium, server.url) as page:
        field = page.get_by_label("API key")
        expect(field).to_be_visible()
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("The server refused that key.")).to_be_visible()
        field.fill("sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#connection")).to_have_text("live")
        say(page, "hello")
        assert answer(page).locator(".prose").inner_text() == "anything"
        assert page.evaluate("localStorage.getItem('octavo.key')") is None
        page.reload()  # the same tab still knows it
        expect(page.locator("#connection")).to_have_text("live")


def test_errors_are_told_and_can_be_tried_again(chromium: Browser, server: Live) -> None:
    with opened(chromium, server.url) as page:
        say(page, "full")
        expect(answer(page).locator(".problem")).to_contain_text("4096 requests are waiting")
        say(page, "halfway")
        expect(answer(page).locator(".problem")).to_contain_text("the model failed on this request")
        assert answer(page).locator(".prose").inner_text() == "some words"
        count = len(server.engine.requests)
        answer(page).get_by_text("Try again").click()
        expect(answer(page).locator(".problem")).to_be_visible()
        assert len(server.engine.requests) == count + 1
        page.context.set_offline(True)
        say(page, "hello")
        expect(answer(page).locator(".problem")).to_contain_text("can't be reached")
        expect(page.locator("#connection")).to_have_text("reconnecting")
        page.context.set_offline(False)
        expect(page.locator("#connection")).to_have_text("live")
        answer(page).get_by_text("Try again").click()
        expect(answer(page).locator(".prose")).to_have_text("anything")


def test_figures_are_plotted_while_they_come(chromium: Browser) -> None:
    with live(toy(SCRIPT)) as server, opened(chromium, server.url) as page:
        say(page, "slow")
        running = page.get_by_role("img", name=re.compile("^Running, last two minutes: now 1, at most 1"))
        expect(running).to_be_attached()
        assert running.locator(".line").get_attribute("d").startswith("M")
        expect(page.locator("#plots figure")).to_have_count(4)


def test_code_and_answers_are_copied(chromium: Browser, server: Live) -> None:
    with opened(chromium, server.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        say(page, "markdown")
        answer(page).locator("figure button").click()
        expect(page.locator("figure.code button")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == 'def f(x):\n    return "<b>" + x'
        answer(page).locator("[data-action=copy]").click()
        expect(answer(page).locator("[data-action=copy]")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN


def test_the_end_stays_in_sight_until_the_reader_scrolls(chromium: Browser, server: Live) -> None:
    with opened(chromium, server.url) as page:
        say(page, "lines")
        expect(answer(page).get_by_text("Paragraph 79.")).to_be_in_viewport()
        page.locator("#log").hover()
        page.mouse.wheel(0, -2000)
        page.get_by_role("button", name="Latest").click()
        expect(answer(page).get_by_text("Paragraph 79.")).to_be_in_viewport()
        expect(page.locator("#to-end")).to_be_hidden()


def test_it_works_under_a_prefix(chromium: Browser) -> None:
    def below(app: Any) -> Starlette:
        return Starlette(routes=[Mount("/llm", app)])

    with live(toy(SCRIPT), below) as server, opened(chromium, server.url + "llm/") as page:
        say(page, "hello")
        assert answer(page).locator(".prose").inner_text() == "anything"
        expect(page.locator("#connection")).to_have_text("live")


WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 640}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_looks_as_it_should(chromium: Browser, server: Live, scheme: Any, size: Any) -> None:
    """Structure, not pixels: what is where, in which colours, and axe's rules, WCAG's contrast among them."""
    with opened(chromium, server.url, viewport=size, color_scheme=scheme, reduced_motion="reduce") as page:
        say(page, "markdown")
        answer(page)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        assert picture.size == (size["width"], size["height"])
        middle = picture.getpixel((size["width"] - 4, size["height"] // 2))  # bare paper, right of the column
        assert (min(middle) > 235) if scheme == "light" else (max(middle) < 40)
        accent = page.locator("#send").bounding_box()
        assert accent is not None
        red, green, blue = picture.getpixel((int(accent["x"] + 5), int(accent["y"] + accent["height"] / 2)))
        assert red > green + 60
        assert red > blue + 60
        boxes = {name: page.locator(name).bounding_box() for name in ("header.bar", "#log", "#composer")}
        assert all(box and box["x"] >= 0 and box["x"] + box["width"] <= size["width"] for box in boxes.values())
        bar, log, composer = boxes.values()
        assert bar["y"] + bar["height"] <= log["y"] < log["y"] + log["height"] <= composer["y"]
        assert composer["y"] + composer["height"] <= size["height"]
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
        assert page.evaluate("document.querySelector('#log').scrollWidth <= document.querySelector('#log').clientWidth")
        assert page.locator("#side").is_visible() == (size is WIDE)
        if size is NARROW:
            page.get_by_role("button", name="Chats and engine").click()
        expect(page.locator("#plots")).to_be_in_viewport(ratio=1)
        assert page.evaluate("document.getAnimations().length") == 0
        _accessible(page)
        if size is NARROW:
            page.keyboard.press("Escape")
            expect(page.locator("#open-side")).to_be_focused()
        page.get_by_role("button", name="Settings").click()
        _accessible(page)


def _accessible(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found] == []


def test_the_keyboard_reaches_everything(chromium: Browser, server: Live) -> None:
    with opened(chromium, server.url) as page:
        say(page, "markdown")
        answer(page)
        reached = []
        name = "(e => e.id || e.dataset.action || e.dataset.copy || e.className || e.tagName)(document.activeElement)"
        while "text" not in reached and len(reached) < 40:
            page.keyboard.press("Tab")
            reached.append(page.evaluate(name))
        assert reached[:3] == ["send", "BODY", "skip"]  # on from the message box, then from the beginning
        for wanted in ("new-chat", "chat", "open-settings", "log", "edit", "code", "PRE", "table", "again", "text"):
            assert wanted in reached, reached
