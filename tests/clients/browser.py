"""A real browser (Debian's chromium) on the page, for test_page*.py and tools/screenshots.py."""
import atexit
import base64
import contextlib
import functools
import json
import os

import pytest
from conftest import IMAGES
from playwright.sync_api import expect, sync_playwright
from proxy import Proxy, cold

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
COUNTED = "9, 10, 11, 12, 13, 14, 15, 16, 17."
LATE = int(os.environ.get("PAGE_TIMEOUT_MS", 30000))  # an answer on a busy machine


expect.set_options(timeout=LATE // 2)


@functools.cache
def playwright():
    """One for all tests, of all files."""
    started = sync_playwright().start()
    atexit.register(started.stop)
    return started


@functools.cache
def shared_browser():
    browser = playwright().chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    atexit.register(browser.close)
    return browser


@contextlib.contextmanager
def launched(*options):
    browser = playwright().chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *options])
    yield browser
    browser.close()


@pytest.fixture
def browser():
    return shared_browser()


def watch(page, url):
    """page.problems gets errors of the console, exceptions, and requests to elsewhere."""
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
    page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or
            page.problems.append("asks outside: " + request.url))


def visit(context, url, model="demo"):
    context.set_default_timeout(LATE)
    page = context.new_page()
    watch(page, url)
    page.goto(url)
    expect(page.locator("#model")).to_have_text(model)
    return page


@pytest.fixture
def page(browser, server):
    context = browser.new_context()
    page = visit(context, server.url)
    set_cold(page)
    yield page
    assert page.problems == []
    context.close()


@pytest.fixture
def slow(server):
    """The server behind a proxy that streams slowly. slow.pause = 0 lets the rest of a stream go."""
    proxy = Proxy(server.port, cold, pause=1)
    yield proxy
    proxy.stop()


@pytest.fixture
def slow_page(browser, slow):
    context = browser.new_context()
    page = visit(context, slow.url)
    yield page
    assert page.problems == []
    context.close()


@contextlib.contextmanager
def settings(page):
    page.get_by_role("button", name="Settings", exact=True).click()
    yield page.locator("#settings")
    page.locator("#settings").get_by_role("button", name="Done").click()


def set_cold(page):
    with settings(page):
        page.locator("#s-temperature").fill("0")


def drop_files(page, files):
    """files: (name, type, bytes)"""
    coded = [{"name": name, "type": kind, "data": base64.b64encode(data).decode()} for name, kind, data in files]
    transfer = page.evaluate_handle("""(files) => {
      const transfer = new DataTransfer();
      for (const {name, type, data} of files) {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {type}));
      }
      return transfer;
    }""", coded)
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#log", event, {"dataTransfer": transfer})


def drop(page, *names):
    drop_files(page, [(name, "image/png", (IMAGES / name).read_bytes()) for name in names])
    expect(page.locator("#attached img")).to_have_count(len(names))


def say(page, text):
    """Sends a message without waiting for its answer."""
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def ask(page, text):
    say(page, text)
    return answered(page)


def answered(page):
    """The last answer, once it has ended."""
    answer = page.locator(".message.assistant").last
    expect(answer.locator(".stats")).to_contain_text("prompt", timeout=LATE)
    expect(answer.get_by_role("button", name="Answer again")).to_be_visible(timeout=LATE)
    return answer


def open_conversation(page, title):
    page.locator("#conversations .open", has_text=title).click()


def notice(page, text):
    return page.locator(".notice", has_text=text)


def script(page, text):
    """Every answer from now on has this text, in the server's form."""
    pieces = [text[i:i + 7] for i in range(0, len(text), 7)]
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(pieces)}})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def stored(page, name="conversations"):
    """What the page keeps, read from its database."""
    return page.evaluate("""(name) => new Promise((resolve, reject) => {
      const request = indexedDB.open("gemma4");
      request.onsuccess = () => {
        const all = request.result.transaction(name).objectStore(name).getAll();
        all.onsuccess = () => { request.result.close(); resolve(all.result); };
        all.onerror = reject;
      };
      request.onerror = reject;
    })""", name)
