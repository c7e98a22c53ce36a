"""Takes the README's pictures of the page: `octavo serve` with the demo model, a load on it, and a chat in Chromium.

python -m tests.openai.pictures. What is on them is what the model said; where the fonts Inter and JetBrains Mono
are not installed they look a little different.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.openai.serving import serving
from tests.support.browser import browser
from tests.support.demo_model import demo_model

KEY, NAME = "sesame", "SmolLM2-135M-Instruct"
FOLDER = Path(__file__).parent
QUESTIONS = (
    "What is a linked list? Answer in one sentence.",
    "Write a Python function that checks whether a number is prime.",
)
SECONDS = 75  # the load lasts at least until both pictures are taken


def main() -> None:
    with serving(str(demo_model()), "--served-model-name", NAME) as (url, _), browser() as chromium:
        command = [sys.executable, "-c", "from octavo.cli import main; raise SystemExit(main())", "bench", "serve"]
        command += ["--url", url, "--api-key", KEY, "--rate", "1.2", "--requests", str(round(1.2 * SECONDS))]
        command += ["--max-output", "256", "--max-input", "256"]
        with subprocess.Popen(command) as load:
            context = chromium.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
            page = context.new_page()
            page.goto(url)
            page.get_by_label("API key").fill(KEY)
            page.keyboard.press("Enter")
            page.get_by_label("Model").select_option(NAME)
            page.get_by_role("button", name="Settings").click()
            page.get_by_label("Temperature").fill("0")
            page.get_by_label("Longest answer, tokens").fill("220")
            page.get_by_role("button", name="Done").click()
            _ask(page, "How do birds find their way?")
            page.get_by_role("button", name="New chat").first.click()
            for question in QUESTIONS:
                _ask(page, question)
            page.wait_for_timeout(45_000)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                page.wait_for_timeout(500)
                page.screenshot(path=FOLDER / f"page-{scheme}.png")
            load.terminate()


def _ask(page: Page, question: str) -> None:
    page.locator("#text").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant").last).to_have_attribute("aria-busy", "false", timeout=60_000)


if __name__ == "__main__":
    main()
