#!/usr/bin/env python3
"""Makes the screenshots of the page for docs/: starts `gemma4 serve` with the demo model and opens it with Debian's chromium, at three
widths and in both themes.

usage: tools/screenshots.py [FOLDER]   (needs the playwright package; `make test-clients` sets one up in build/clients)
"""
import argparse
import pathlib
import sys

from playwright.sync_api import expect

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/clients"))
from browser import ask, drop, script, set_cold, settings, shared_browser, visit  # noqa: E402
from conftest import Served  # noqa: E402

WIDTHS = {1280: 800, 375: 740, 320: 640}
TOOLS = """[{"type": "function", "function": {"name": "set_timer", "description": "Set a timer in minutes.", "parameters":
{"type": "object", "properties": {"minutes": {"type": "integer", "description": "The minutes."}}, "required": ["minutes"]}}}]"""
# What the demo model cannot write.
WRITTEN = """The area of a circle is $A = \\pi r^2$, and half of it is

$$\\int_{-r}^{r} \\sqrt{r^2 - x^2}\\,dx = \\frac{\\pi r^2}{2}$$

```python
def area(radius):  # of a circle
    return math.pi * radius ** 2
```

| radius | area |
|:--|--:|
| 1 | 3.14 |
| 2 | 12.57 |

- [x] the formula
- [ ] the proof
"""


def new_chat(page):
    page.keyboard.press("Control+Shift+O")


def about_a_picture(page):
    """With a thought before it, and another version of the answer."""
    page.get_by_role("button", name="Think first").click()
    ask(page, "What is 3 + 4?")
    page.get_by_role("button", name="Think first").click()
    drop(page, "002.png")
    ask(page, "What is at the left?")
    page.get_by_role("button", name="Answer again").last.click()
    expect(page.locator(".version")).to_have_text("2/2")
    ask_again = page.get_by_role("button", name="Answer again").last
    expect(ask_again).to_be_visible(timeout=30000)


def with_a_tool(page):
    with settings(page):
        page.locator("#s-tools").fill(TOOLS)
    ask(page, "Set a timer for 6 minutes.")
    with settings(page):
        page.locator("#s-tools").fill("")


def written(page):
    script(page, WRITTEN)
    ask(page, "How large is a circle?")
    page.locator(".katex .vlist").first.wait_for()
    page.wait_for_timeout(500)  # its fonts
    page.unroute("**/v1/chat/completions")


def shoot(context, url, out, name, whole):
    """`whole`: what looks alike elsewhere, too."""
    page = visit(context, url)
    set_cold(page)

    def picture(what):
        page.mouse.move(0, 0)
        page.wait_for_timeout(400)
        page.screenshot(path=out / f"page-{what}-{name}.png")
    if whole:
        picture("start")
        with_a_tool(page)
        picture("tools")
        page.get_by_role("button", name="Settings", exact=True).click()
        picture("settings")
        page.keyboard.press("Escape")
        new_chat(page)
    written(page)
    picture("text")
    new_chat(page)
    about_a_picture(page)
    picture("chat")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=pathlib.Path, default=ROOT / "docs/images")
    out = parser.parse_args().output
    out.mkdir(parents=True, exist_ok=True)
    served = Served()
    for width, height in WIDTHS.items():
        for scheme in ("light", "dark"):
            phone = width < 760
            context = shared_browser().new_context(color_scheme=scheme, viewport={"width": width, "height": height},
                                                   device_scale_factor=2 if phone else 1, is_mobile=phone, has_touch=phone,
                                                   reduced_motion="reduce")
            shoot(context, served.url, out, f"{width}-{scheme}", whole=not phone and scheme == "light")
            context.close()
    served.stop()


if __name__ == "__main__":
    main()
