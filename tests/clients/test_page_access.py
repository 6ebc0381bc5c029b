"""Whom the page serves: axe finds nothing in the main views, in both themes; fingers hit what they aim at; narrow screens do."""
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import ask, browser, drop, drop_files, notice, page, script, set_cold, visit  # noqa: F401
from playwright.sync_api import expect

WRITTEN = """# Title

Some *text* with [a link](https://example.com), `code` and $E = mc^2$.

- [ ] open
- [x] done

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(x):  # why
    return "a" + 1
```

> quoted

$$\\int_0^1 x\\,dx$$
"""


def full_chat(page):
    script(page, WRITTEN)
    drop(page, "002.png")
    drop_files(page, [("notes.txt", "text/plain", b"notes")])
    ask(page, "What is this?")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".version")).to_have_text("2/2")
    page.locator(".katex").first.wait_for()


def welcome(page):
    expect(page.locator("#toy")).to_be_visible()


def chat(page):
    full_chat(page)
    drop(page, "000.png")
    drop_files(page, [("bad.bin", "", b"\0")])
    expect(notice(page, "bad.bin")).to_be_visible()
    page.locator(".message.user").first.hover()


def editing(page):
    full_chat(page)
    page.locator(".message.user").first.hover()
    page.get_by_role("button", name="Edit and ask again").click()


def thought_and_tool(page):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=(
        'data: {"choices": [{"delta": {"reasoning_content": "Hm."}}]}\n\n'
        'data: {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}}]}\n\n'
        'data: {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}\n\ndata: [DONE]\n\n')))
    page.get_by_label("Message", exact=True).fill("Go")
    page.keyboard.press("Enter")
    page.locator("details.thought summary").click()
    expect(page.locator(".tool")).to_be_visible()


def settings_view(page):
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Temperature").fill("x")


def conversation_view(page):
    full_chat(page)
    page.get_by_role("button", name="This conversation", exact=True).click()


def viewer(page):
    full_chat(page)
    page.get_by_role("button", name="Show picture 1 large").first.click()


def list_view(page):
    full_chat(page)
    page.get_by_role("button", name="New chat").click()
    ask(page, "Another")
    page.locator("#conversations li").first.hover()


VIEWS = [welcome, chat, editing, thought_and_tool, settings_view, conversation_view, viewer, list_view]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_axe_finds_nothing(browser, server, scheme, view):
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
    page = visit(context, server.url)
    view(page)
    page.wait_for_timeout(300)
    found = Axe().run(page).response["violations"]
    assert not found, "\n".join(f"{v['id']}: {v['help']}\n" + "\n".join(
        f"  {n['html'][:160]} {n['failureSummary'][:300]}" for n in v["nodes"]) for v in found)
    context.close()


def test_axe_is_at_work(page):
    """A page with a fault fails."""
    page.evaluate("for (const name of ['aria-label', 'title']) document.querySelector('#open-settings').removeAttribute(name)")
    assert "button-name" in [violation["id"] for violation in Axe().run(page).response["violations"]]


SMALL = """() => [...document.querySelectorAll("button, input, select, textarea, summary, .note a")]
  .filter((node) => node.checkVisibility({visibilityProperty: true, opacityProperty: true}) && !node.disabled && node.type !== "checkbox" &&
                    (!document.querySelector("dialog[open]") || node.closest("dialog")))
  .map((node) => [node.id || node.getAttribute("aria-label") || node.textContent, node.getBoundingClientRect()])
  .filter(([, box]) => box.width < 43.5 || box.height < 43.5).map(([name, box]) => `${name} ${box.width}x${box.height}`)"""


@pytest.mark.parametrize("width", [375, 320])
@pytest.mark.parametrize("view", VIEWS[:-1], ids=lambda view: view.__name__)
def test_fingers_and_narrow_screens(browser, server, width, view):
    context = browser.new_context(viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True)
    page = visit(context, server.url)
    view(page)
    assert page.evaluate(SMALL) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate("""(width) => [...document.querySelectorAll("button, input, textarea, select")].filter((node) => node.checkVisibility())
      .filter((node) => { const box = node.getBoundingClientRect(); return box.width && (box.left < -1 || box.right > width + 1); })
      .filter((node) => !node.closest(".sidebar, .table, pre")).map((node) => node.id || node.outerHTML)""", width)
    assert wide == []
    context.close()


def test_a_language_is_not_covered_on_a_phone(browser, server):
    context = browser.new_context(viewport={"width": 375, "height": 700}, has_touch=True, is_mobile=True)
    page = visit(context, server.url)
    full_chat(page)
    name, button = (page.locator(".block " + part).bounding_box() for part in (".lang", "button"))
    assert name["x"] + name["width"] <= button["x"]
    context.close()


@pytest.mark.parametrize("width", [375, 320])
def test_the_list_on_a_phone(browser, server, width):
    context = browser.new_context(viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True)
    page = visit(context, server.url)
    script(page, "Yes.")
    for question in ("One", "Two"):
        page.get_by_label("Show or hide the conversations").click()
        page.get_by_role("button", name="New chat").click()
        ask(page, question)
    page.get_by_label("Show or hide the conversations").click()
    page.wait_for_timeout(400)
    assert page.evaluate(SMALL) == []
    context.close()


def test_every_control_has_a_name(page):
    full_chat(page)
    page.get_by_role("button", name="Settings", exact=True).click()
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea, meter")].filter((node) =>
      !(node.getAttribute("aria-label") || node.labels?.length || node.textContent.trim())).map((node) => node.outerHTML)""")
    assert unnamed == []
