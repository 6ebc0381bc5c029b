#!/usr/bin/env python3
"""Makes the screenshots of the page for docs/: starts `gemma4 serve` with the demo model and opens it with Debian's chromium.

usage: tools/screenshots.py [FOLDER]   (needs the playwright package; `make test-clients` sets one up in build/clients)
"""
import os
import pathlib
import sys

from playwright.sync_api import expect, sync_playwright

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/clients"))
from conftest import IMAGES, Served  # noqa: E402
from test_page import ask, drop, set_cold  # noqa: E402

TOOLS = """[{"type": "function", "function": {"name": "set_timer", "description": "Set a timer in minutes.", "parameters":
{"type": "object", "properties": {"minutes": {"type": "integer", "description": "The minutes."}}, "required": ["minutes"]}}}]"""


def converse(page):
    """A conversation about a picture, one with a thought, one with a tool; the first stays on the screen."""
    page.get_by_role("button", name="Think first").click()
    ask(page, "What is 3 + 4?")
    page.get_by_role("button", name="Think first").click()
    page.keyboard.press("Control+Shift+O")
    page.get_by_role("button", name="Settings", exact=True).click()
    page.locator("#s-tools").fill(TOOLS)
    page.get_by_role("button", name="Done").click()
    ask(page, "Set a timer for 6 minutes.")
    page.get_by_role("button", name="Settings", exact=True).click()
    page.locator("#s-tools").fill("")
    page.get_by_role("button", name="Done").click()
    page.keyboard.press("Control+Shift+O")
    drop(page, "002.png")
    ask(page, "What is at the left?")


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images"
    out.mkdir(parents=True, exist_ok=True)
    served = Served()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
                                             args=["--no-sandbox"])
        for name, scheme, size in (("light", "light", (1280, 800)), ("dark", "dark", (1280, 800)),
                                   ("phone", "light", (390, 844))):
            context = browser.new_context(color_scheme=scheme, viewport={"width": size[0], "height": size[1]},
                                          device_scale_factor=2 if name == "phone" else 1, is_mobile=name == "phone",
                                          has_touch=name == "phone")
            page = context.new_page()
            page.goto(served.url)
            expect(page.locator("#model")).to_have_text("demo")
            set_cold(page)
            if name == "light":
                page.screenshot(path=out / "page-start.png")
            if name == "phone":
                page.get_by_role("button", name="Think first").click()
                ask(page, "What is 3 + 4?")
                page.locator("details.thought summary").click()
                page.get_by_role("button", name="Think first").click()
                drop(page, "002.png")
                ask(page, "What is at the left?")
            else:
                converse(page)
            page.screenshot(path=out / f"page-{name}.png")
            if name == "dark":
                page.locator("#conversations .open", has_text="Set a timer").click()
                page.screenshot(path=out / "page-tools.png")
                page.get_by_role("button", name="Settings", exact=True).click()
                page.screenshot(path=out / "page-settings.png")
            context.close()
        browser.close()
    served.stop()


if __name__ == "__main__":
    main()
