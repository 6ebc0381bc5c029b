"""The page says what happens, where people can see it: files it cannot read, a full disk, keys, copies, host names."""
import json
import re
import urllib.error
import urllib.request

import pytest
from browser import ask, browser, drop_files, launched, notice, page, say, set_cold, settings, visit  # noqa: F401
from conftest import Served
from playwright.sync_api import expect


@pytest.mark.parametrize("name, kind, data, why", [
    ("picture.png", "image/png", b"\x89PNG nonsense", "this browser cannot read it as a picture"),
    ("program.bin", "application/octet-stream", bytes(range(256)), "it is neither a picture, a text nor a PDF file"),
    ("broken.pdf", "application/pdf", b"%PDF-1.4 nonsense", "it is damaged"),
    ("empty.txt", "text/plain", b"", "it is empty"),
])
def test_a_file_that_cannot_be_read(page, name, kind, data, why):
    drop_files(page, [(name, kind, data)])
    said = notice(page, f"{name} was not added: {why}")
    expect(said).to_be_visible()
    expect(said).to_be_in_viewport()
    assert said.get_attribute("role") == "alert"
    assert said.bounding_box()["width"] > 200
    said.get_by_role("button", name="Close this notice").click()
    expect(said).to_have_count(0)
    page.problems.clear()  # PDF.js warns


def test_each_of_many_files_is_spoken_of(page):
    drop_files(page, [(f"{i}.bin", "", bytes(9)) for i in range(9)])
    expect(page.locator(".notice.failed")).to_have_count(9)
    expect(notice(page, "8.bin")).to_be_in_viewport()
    assert page.locator("#notices").bounding_box()["height"] < 0.41 * page.viewport_size["height"]


def test_conversations_that_cannot_be_read(browser, server):
    context = browser.new_context()
    context.add_init_script("IDBObjectStore.prototype.getAll = () => { throw new Error('the disk is bad'); };")
    page = visit(context, server.url)
    expect(notice(page, "Earlier conversations could not be read: the disk is bad")).to_be_visible()
    set_cold(page)
    expect(ask(page, "Count from 9 to 12.").locator(".body")).to_have_text("9, 10, 11, 12.")
    context.close()


def test_a_full_disk(page):
    ask(page, "Count from 2 to 4.")
    page.get_by_role("button", name="New chat").click()
    page.evaluate("""() => {
      const put = IDBObjectStore.prototype.put;
      IDBObjectStore.prototype.put = function (...all) {
        if (this.name !== "conversations") return put.apply(this, all);
        Object.defineProperty(this.transaction, "error", {value: new DOMException("full", "QuotaExceededError")});
        this.transaction.abort();
      };
    }""")
    answer = ask(page, "Count from 9 to 12.")
    expect(answer.locator(".body")).to_have_text("9, 10, 11, 12.")
    expect(notice(page, "The browser's storage for this page is full")).to_be_visible()
    expect(notice(page, "storage")).to_have_count(1)
    page.problems.clear()


def test_a_full_disk_and_a_draft(page):
    page.evaluate("""() => {
      const put = IDBObjectStore.prototype.put;
      IDBObjectStore.prototype.put = function (...all) {
        if (this.name !== "attached") return put.apply(this, all);
        this.transaction.commit = undefined;  // it has ended by then
        Object.defineProperty(this.transaction, "error", {value: new DOMException("full", "QuotaExceededError")});
        this.transaction.abort();
      };
    }""")
    drop_files(page, [("notes.txt", "text/plain", b"A note.")])
    expect(notice(page, "The browser's storage for this page is full")).to_have_count(1)
    expect(page.locator("#attached .document")).to_have_text("notes.txt")
    page.problems.clear()


def test_a_first_visit_where_a_key_is_needed(browser, locked_server):
    context = browser.new_context()
    page = context.new_page()
    page.goto(locked_server.url)
    dialog = page.get_by_role("dialog", name="Settings")
    expect(dialog.get_by_role("alert").filter(has_text="This server asks for an API key before it answers")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "s-key"
    page.keyboard.type("wrong")
    page.keyboard.press("Tab")
    expect(dialog.get_by_role("alert").filter(has_text="The server does not take this key")).to_be_visible()
    dialog.get_by_label("API key").fill("sesame")
    page.keyboard.press("Tab")
    expect(page.locator("#model")).to_have_text("demo")
    expect(page.locator("#key-note")).not_to_be_visible()
    dialog.get_by_role("button", name="Done").click()
    expect(notice(page, "The server takes this key")).to_be_visible()
    set_cold(page)
    expect(ask(page, "Count from 9 to 12.").locator(".body")).to_have_text("9, 10, 11, 12.")
    page.evaluate("import('./settings.js').then(({settings}) => { settings.key = 'wrong'; })")
    say(page, "Count from 2 to 4.")
    expect(page.get_by_role("dialog", name="Settings").get_by_text("The server does not take this key")).to_be_visible()
    context.close()


def test_a_server_that_is_gone(browser, server):
    context = browser.new_context()
    page = context.new_page()
    page.route("**/v1/models", lambda route: route.abort())
    page.goto(server.url)
    expect(notice(page, "The server cannot be reached")).to_be_visible()
    page.unroute("**/v1/models")
    notice(page, "cannot be reached").get_by_role("button", name="Try again").click()
    expect(page.locator("#model")).to_have_text("demo")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page, "Hello")
    expect(page.locator(".message .failed")).to_have_text("The server cannot be reached.")
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".version")).to_have_text("2/2")
    context.close()


def test_a_server_that_has_another_model_by_now(page):
    page.evaluate("import('./state.js').then(({state}) => { state.model.id = 'former'; })")
    say(page, "Count from 9 to 12.")
    expect(page.locator(".message .failed")).to_contain_text("the model 'former' is not served here")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".message.assistant .body")).to_have_text("9, 10, 11, 12.")
    page.problems.clear()  # the status 404


def test_one_token_is_one(page):
    with settings(page):
        page.get_by_label("Longest answer").fill("1")
    expect(ask(page, "Count from 9 to 17.").locator(".stats")).to_contain_text(re.compile(r"^1 token ·"))


@pytest.fixture(scope="module")
def named_server():
    served = Served("--allow-host", "gemma.test")
    yield served
    served.stop()


def test_copies_over_http_on_a_name_of_the_network(named_server):
    with launched("--host-resolver-rules=MAP *.test 127.0.0.1") as browser:
        context = browser.new_context()
        page = visit(context, f"http://gemma.test:{named_server.port}")
        assert page.evaluate("[window.isSecureContext, navigator.clipboard]") == [False, None]
        set_cold(page)
        ask(page, "Count from 9 to 12.")
        page.get_by_role("button", name="Copy the answer").click()
        expect(page.locator("#status")).to_have_text("Copied.")
        page.get_by_label("Message", exact=True).focus()
        page.keyboard.press("Control+V")
        expect(page.get_by_label("Message", exact=True)).to_have_value("9, 10, 11, 12.")
        page.evaluate("document.execCommand = () => false")
        page.get_by_role("button", name="Copy the answer").click()
        expect(notice(page, "This could not be copied")).to_be_visible()
        context.close()


def test_a_host_name_that_is_not_allowed_gets_a_page(named_server):
    with launched("--host-resolver-rules=MAP *.test 127.0.0.1") as browser:
        page = browser.new_page()
        answer = page.goto(f"http://mybox.test:{named_server.port}/")
        assert answer.status == 403
        expect(page.get_by_role("heading")).to_have_text("This server does not answer under this name")
        expect(page.locator("body")).to_contain_text("gemma4 serve … --allow-host mybox.test")


@pytest.mark.parametrize("accept, host, kind", [
    ("text/html,*/*", "mybox.test", "text/html; charset=utf-8"),
    ("text/html", "<b>x", "text/html; charset=utf-8"),
    ("*/*", "mybox.test", "application/json"),
    ("application/json", "mybox.test", "application/json"),
])
def test_other_clients_keep_the_json(named_server, accept, host, kind):
    request = urllib.request.Request(named_server.url + "/v1/models", headers={"Accept": accept, "Host": host})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    body = refused.value.read().decode()
    assert "<b>x" not in body
    if host == "<b>x" and refused.value.code == 400:
        return  # it never comes so far
    assert refused.value.code == 403 and refused.value.headers["Content-Type"].startswith(kind)
    if kind == "application/json":
        assert "--allow-host would allow it" in json.loads(body)["error"]["message"]
