"""The page in a real browser: pictures dropped in, answers read, keyboards and phones. What it keeps, says and shows: test_page_*.py."""
import base64
import json
import re
import urllib.request

import pytest
from browser import COUNTED, LATE, ask, browser, drop, page, settings, visit  # noqa: F401
from conftest import IMAGES
from playwright.sync_api import expect


def test_drops_a_picture_and_reads_the_answer(page):
    drop(page, "000.png")
    answer = ask(page, "What number is written in the image?")
    expect(answer.locator(".body")).to_have_text("6542")
    expect(answer.locator(".stats")).to_contain_text("tokens/s")


def test_every_picture_of_a_few(page):
    rows = json.loads((IMAGES.parent / "demo_eval.json").read_text())["rows"][:6]
    for row in rows:
        page.get_by_role("button", name="New chat").click()
        drop(page, row["image"])
        expect(ask(page, row["question"]).locator(".body")).to_have_text(row["reference_output"])


def test_pastes_a_picture(page):
    page.get_by_label("Message", exact=True).focus()
    page.evaluate("""(data) => {
      const transfer = new DataTransfer();
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      transfer.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
      document.activeElement.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}));
    }""", base64.b64encode((IMAGES / "000.png").read_bytes()).decode())
    expect(page.locator("#attached img")).to_have_count(1)
    expect(ask(page, "What number is written in the image?").locator(".body")).to_have_text("6542")


def test_stops_an_answer(page, server):
    # All sequences are in use, and others wait, so the answer waits until it is stopped. (Of one request with many choices a
    # quarter of the sequences would be left to others.)
    def fill(_):
        body = {"model": "demo", "prompt": "x", "max_tokens": 1900, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return urllib.request.urlopen(request)
    streams = [fill(i) for i in range(48)]
    try:
        page.get_by_label("Message", exact=True).fill("Count from 9 to 17.")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Stop the answer").click()
        expect(page.locator(".message.assistant .stats")).to_have_text("stopped")
        expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    finally:
        for stream in streams:
            stream.close()
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".message.assistant .body")).to_have_text(COUNTED, timeout=LATE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser, server, scheme):
    context = browser.new_context(color_scheme=scheme)
    page = visit(context, server.url)
    back, text = (sum(map(int, re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
                  for name in ("backgroundColor", "color"))
    assert (back > text) == (scheme == "light") and abs(back - text) > 300
    context.close()


def test_keeps_conversations(page):
    ask(page, "Count from 9 to 17.")
    page.get_by_role("button", name="New chat").click()
    ask(page, "Spell the word ladder.")
    page.reload()
    expect(page.locator("#conversations li")).to_have_count(2)
    expect(page.locator("#title")).to_have_text("Spell the word ladder.")  # a reload shows what was shown
    page.locator("#conversations .open", has_text="Count from").click()
    expect(page.locator(".message.assistant .body")).to_have_text(COUNTED)
    page.locator("#conversations li", has_text="Count from").hover()
    page.get_by_role("button", name="Delete the conversation Count from 9 to 17.").click()
    expect(page.locator("#conversations li")).to_have_count(1)


def test_thoughts_are_folded(page):
    page.get_by_role("button", name="Think first").click()
    answer = ask(page, "What is 3 + 4?")
    thought = answer.locator("details.thought")
    expect(thought).to_have_count(1)
    assert not thought.evaluate("(node) => node.open")
    thought.locator("summary").click()
    expect(thought.locator("div")).to_be_visible()


def test_tool_calls_are_shown_and_answered(page):
    with settings(page):
        page.locator("#s-tools").fill(json.dumps([{"type": "function", "function": {
        "name": "set_timer", "description": "Set a timer in minutes.", "parameters": {
            "type": "object", "properties": {"minutes": {"type": "integer", "description": "The minutes."}},
            "required": ["minutes"]}}}]))
    answer = ask(page, "Set a timer for 6 minutes.")
    expect(answer.locator(".tool-head")).to_have_text("set_timer")
    expect(answer.locator(".tool pre")).to_contain_text('"minutes": 6')
    answer.get_by_label("What it returned").fill("The timer runs.")
    answer.get_by_role("button", name="Return to the model").click()
    expect(page.locator(".message.assistant")).to_have_count(2)
    expect(page.locator(".message.assistant").last.locator(".stats")).to_be_visible(timeout=LATE)


def test_keyboard_alone(page):
    page.keyboard.press("Control+Shift+O")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("Count from 9 to 12.")
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant .body")).to_have_text("9, 10, 11, 12.", timeout=LATE)
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button")].filter((b) =>
      b.checkVisibility() && !b.textContent.trim() && !b.getAttribute("aria-label")).length""")
    assert unnamed == 0


def test_phone(browser, server):
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page = visit(context, server.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.get_by_role("button", name="New chat")).not_to_be_visible()
    page.get_by_label("Show or hide the conversations").click()
    expect(page.get_by_role("button", name="New chat")).to_be_visible()
    page.get_by_label("Close the list of conversations").click()
    page.get_by_label("Message", exact=True).fill("Count from 9 to 12.")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator(".message.assistant .body")).to_contain_text("9, 10", timeout=LATE)
    context.close()
