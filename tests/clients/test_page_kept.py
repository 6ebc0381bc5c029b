"""The page loses nothing: edits, other answers, reloads, other conversations, other tabs, deletions."""
import json
import re

from browser import (COUNTED, LATE, answered, ask, browser, drop, drop_files, notice, open_conversation, page, say, script,  # noqa: F401
                     slow, slow_page, stored, visit)
from conftest import IMAGES
from playwright.sync_api import expect

LONG = "Count from 9 to 17."


def texts(page):
    return [node.inner_text() for node in page.locator(".message .bubble, .message .body").all()]


def test_an_edit_keeps_both_versions(page):
    ask(page, LONG)
    ask(page, "Count from 2 to 4.")
    before = texts(page)
    page.locator(".message.user").first.hover()
    page.get_by_role("button", name="Edit and ask again").first.click()
    assert texts(page) == before  # nothing vanishes while one edits
    expect(page.get_by_label("Message", exact=True)).to_have_value(LONG)
    answer = ask(page, "Count from 9 to 12.")
    expect(answer.locator(".body")).to_have_text("9, 10, 11, 12.")
    expect(page.locator(".message")).to_have_count(2)
    expect(page.locator(".version")).to_have_text("2/2")
    page.get_by_role("button", name="Earlier version").click()
    expect(page.locator(".version").first).to_have_text("1/2")
    assert texts(page) == before
    page.reload()
    expect(page.locator(".message")).to_have_count(4)
    assert texts(page) == before
    page.get_by_role("button", name="Later version").click()
    expect(page.locator(".message.assistant .body")).to_have_text("9, 10, 11, 12.")


def test_an_edit_can_be_cancelled(page):
    ask(page, LONG)
    before = texts(page)
    for cancel in (lambda: page.get_by_role("button", name="Cancel").click(), lambda: page.keyboard.press("Escape")):
        page.get_by_label("Message", exact=True).fill("half a thought")
        page.locator(".message.user").hover()
        page.get_by_role("button", name="Edit and ask again").click()
        page.get_by_label("Message", exact=True).fill("something else")
        page.get_by_label("Message", exact=True).dispatch_event("keydown", {"key": "Escape", "isComposing": True})
        expect(page.locator("#editing")).to_be_visible()  # that one was for the input method
        cancel()
        expect(page.locator("#editing")).not_to_be_visible()
        expect(page.get_by_label("Message", exact=True)).to_have_value("half a thought")
        assert texts(page) == before
    assert len(stored(page)[0]["messages"]) == 2


def test_another_answer_keeps_the_first(page):
    script(page, "first")
    ask(page, "Say something.")
    page.unroute("**/v1/chat/completions")
    script(page, "second")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".message.assistant .body")).to_have_text("second")
    expect(page.locator(".version")).to_have_text("2/2")
    page.get_by_role("button", name="Earlier version").click()
    expect(page.locator(".message.assistant .body")).to_have_text("first")
    expect(page.locator(".message")).to_have_count(2)


def test_an_answer_goes_on_beside_other_conversations(slow_page, slow):
    page = slow_page
    say(page, LONG)
    expect(page.locator(".message.assistant .body")).to_contain_text("9,", timeout=LATE)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#conversations .writing")).to_have_count(1)
    slow.pause = 0
    say(page, "Count from 2 to 4.")
    expect(page.locator(".message.assistant .body")).to_have_text("2, 3, 4.", timeout=LATE)
    expect(page.locator("#conversations .unread")).to_have_count(1, timeout=LATE)
    open_conversation(page, LONG)
    expect(page.locator(".message.assistant .body")).to_have_text(COUNTED)
    expect(page.locator("#conversations .unread")).to_have_count(0)


def test_a_reload_keeps_what_came_and_it_can_go_on(slow_page, slow):
    page = slow_page
    say(page, LONG)
    expect(page.locator(".message.assistant .body")).to_contain_text("9, 10", timeout=LATE)
    page.wait_for_timeout(1500)  # what comes is kept once a second
    page.reload()
    answer = page.locator(".message.assistant")
    expect(answer.locator(".stats")).to_have_text("interrupted", timeout=LATE)
    expect(answer.locator(".body")).to_contain_text("9, 10")
    expect(answer.get_by_role("button", name="Answer again")).to_be_visible()
    assert answer.locator(".body").inner_text() != COUNTED
    slow.pause = 0
    answer.get_by_role("button", name="Continue").click()
    expect(answer.locator(".body")).to_have_text(COUNTED, timeout=LATE)
    expect(answer.get_by_role("button", name="Continue")).to_have_count(0)
    last = slow.asked("/v1/chat/completions")[-1]["messages"][-1]
    assert last["role"] == "assistant" and COUNTED.startswith(last["content"])


def test_a_reload_before_the_first_token(slow_page, slow):
    page = slow_page
    slow.pause = 5
    say(page, LONG)
    expect(page.locator(".message.assistant")).to_be_visible()
    page.wait_for_timeout(300)
    page.reload()
    slow.pause = 0
    expect(page.locator(".message.user .bubble")).to_have_text(LONG)
    page.get_by_role("button", name=re.compile("Answer again|Answer this")).click(timeout=LATE)
    expect(page.locator(".message.assistant .body")).to_have_text(COUNTED, timeout=LATE)


def test_a_stopped_answer_can_go_on(slow_page, slow):
    page = slow_page
    say(page, LONG)
    expect(page.locator(".message.assistant .body")).to_contain_text("9, 10", timeout=LATE)
    page.keyboard.press("Escape")
    expect(page.locator(".message.assistant .stats")).to_have_text("stopped")
    slow.pause = 0
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".message.assistant .body")).to_have_text(COUNTED, timeout=LATE)


def test_an_answer_at_its_longest_can_go_on(page):
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Longest answer").fill("5")
    page.get_by_role("button", name="Done").click()
    answer = ask(page, LONG)
    expect(answer.locator(".stats")).to_contain_text("cut at its longest")
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Longest answer").fill("")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Continue").click()
    expect(answer.locator(".body")).to_have_text(COUNTED, timeout=LATE)


def test_a_message_waits_for_the_answer(slow_page, slow):
    page = slow_page
    say(page, LONG)
    expect(page.locator(".message.assistant .body")).to_contain_text("9,", timeout=LATE)
    say(page, "Count from 2 to 4.")
    expect(page.locator(".queued .bubble")).to_have_text("Count from 2 to 4.")
    slow.pause = 0
    expect(page.locator(".message.assistant")).to_have_count(2, timeout=LATE)
    expect(page.locator(".message.assistant .body").first).to_have_text(COUNTED)
    expect(page.locator(".message.assistant .body").last).to_have_text("2, 3, 4.", timeout=LATE)
    expect(page.locator(".queued")).to_have_count(0)


def test_a_waiting_message_outlives_a_stop_and_a_reload(slow_page, slow):
    page = slow_page
    say(page, LONG)
    expect(page.locator(".message.assistant .body")).to_contain_text("9,", timeout=LATE)
    say(page, "Count from 2 to 4.")
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.locator(".queued .bubble")).to_have_text("Count from 2 to 4.")
    page.reload()
    slow.pause = 0
    page.get_by_role("button", name="Send now").click()
    expect(page.locator(".message.assistant .body").last).to_have_text("2, 3, 4.", timeout=LATE)
    page.get_by_label("Message", exact=True).fill("unsent")
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_have_value("unsent")


def test_what_is_attached_waits_for_a_new_chat(page):
    ask(page, LONG)
    page.get_by_role("button", name="New chat").click()
    drop(page, "000.png")
    page.get_by_label("Message", exact=True).fill("What number")
    for leave in (lambda: open_conversation(page, LONG), lambda: None):
        leave()
        page.get_by_role("button", name="New chat").click()
        expect(page.locator("#attached img")).to_have_count(1)
        expect(page.get_by_label("Message", exact=True)).to_have_value("What number")
    expect(ask(page, "What number is written in the image?").locator(".body")).to_have_text("6542")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#attached img")).to_have_count(0)


def test_what_is_attached_outlives_a_reload(page):
    """In a new chat and in an earlier conversation, each its own; what was sent does not come back."""
    drop(page, "000.png")
    drop_files(page, [("notes.txt", "text/plain", b"A note.")])
    page.get_by_label("Message", exact=True).fill(" What number is written in the image?")
    page.reload()
    expect(page.locator("#attached img")).to_have_count(1)
    expect(page.locator("#attached .document")).to_have_text("notes.txt")
    expect(page.get_by_label("Message", exact=True)).to_have_value(" What number is written in the image?")
    page.get_by_role("button", name="Remove notes.txt").click()
    page.reload()
    expect(page.locator("#attached figure")).to_have_count(1)
    page.get_by_label("Message", exact=True).press("Enter")
    expect(answered(page).locator(".body")).to_have_text("6542")
    page.reload()
    expect(page.locator("#attached figure")).to_have_count(0)
    drop_files(page, [("later.txt", "text/plain", b"A note.")])
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#attached figure")).to_have_count(0)
    page.reload()
    open_conversation(page, "What number")
    expect(page.locator("#attached .document")).to_have_text("later.txt")


def test_an_edit_with_its_pictures_outlives_a_reload(page):
    drop(page, "000.png")
    ask(page, "What number is written in the image?")
    drop_files(page, [("aside.txt", "text/plain", b"A note.")])
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit and ask again").click()
    drop_files(page, [("more.txt", "text/plain", b"A note.")])
    expect(page.locator("#attached figure")).to_have_count(2)
    page.reload()
    expect(page.locator("#editing")).to_be_visible()
    expect(page.locator("#attached img")).to_have_count(1)
    expect(page.locator("#attached .document")).to_have_text("more.txt")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#attached .document")).to_have_text("aside.txt")
    page.reload()
    expect(page.locator("#editing")).not_to_be_visible()
    expect(page.locator("#attached .document")).to_have_text("aside.txt")


def test_a_draft_goes_with_its_conversation(page):
    ask(page, "Count from 9 to 12.")
    page.get_by_label("Message", exact=True).fill("half a thought")
    page.locator("#conversations li").hover()
    page.get_by_role("button", name="Delete the conversation").click()
    notice(page, "was deleted").get_by_role("button", name="Undo").click()
    expect(page.get_by_label("Message", exact=True)).to_have_value("half a thought")
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_have_value("half a thought")
    page.locator("#conversations li").hover()
    page.get_by_role("button", name="Delete the conversation").click()
    expect(page.locator("#conversations li")).to_have_count(0)
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    page.wait_for_function("import('./store.js').then(({loadDrafts}) => loadDrafts([])).then((drafts) => drafts.size === 0)")
    assert stored(page, "drafts") == []


def test_an_edit_waits_while_another_conversation_is_open_and_for_a_reload(page):
    ask(page, LONG)
    page.get_by_label("Message", exact=True).fill("half a thought")
    page.locator(".message.user").hover()
    page.get_by_role("button", name="Edit and ask again").click()
    page.get_by_label("Message", exact=True).fill("Count from 2 to 4.")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#editing")).not_to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_have_value("")
    open_conversation(page, LONG)
    expect(page.locator("#editing")).to_be_visible()
    expect(page.locator(".message.edited")).to_have_count(1)
    page.reload()
    expect(page.locator("#editing")).to_be_visible()
    expect(page.locator(".message.edited")).to_have_count(1)
    expect(page.get_by_label("Message", exact=True)).to_have_value("Count from 2 to 4.")
    expect(ask(page, "Count from 2 to 5.").locator(".body")).to_have_text("2, 3, 4, 5.")
    expect(page.locator(".version")).to_have_text("2/2")
    expect(page.get_by_label("Message", exact=True)).to_have_value("half a thought")


def test_what_a_tool_returned_outlives_a_reload(page):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=(
        'data: {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]}}]}\n\n'
        'data: {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}\n\ndata: [DONE]\n\n')))
    say(page, "Go")
    page.get_by_label("What it returned").press_sequentially("42 apples")
    other = visit(page.context, page.url)
    open_conversation(other, "Go")
    expect(other.get_by_label("What it returned")).to_have_value("42 apples")
    page.get_by_label("What it returned").press_sequentially(" and")
    expect(other.get_by_label("What it returned")).to_have_value("42 apples and")
    other.get_by_label("What it returned").fill("42 apples")
    expect(page.get_by_label("What it returned")).to_have_value("42 apples")
    page.wait_for_timeout(200)
    page.reload()
    expect(page.get_by_label("What it returned")).to_have_value("42 apples")
    page.get_by_role("button", name="Return to the model").click()
    expect(page.locator(".tool .result")).to_have_text("42 apples")


def test_a_file_stays_where_it_was_dropped(page):
    script(page, "Yes.")
    ask(page, "One")
    page.evaluate("""() => {
      const read = createImageBitmap;
      window.createImageBitmap = async (file) => {
        await new Promise((resolve) => { window.goOn = resolve; });
        return read(file);
      };
    }""")
    drop_files(page, [("000.png", "image/png", (IMAGES / "000.png").read_bytes())])
    page.wait_for_function("Boolean(window.goOn)")
    page.get_by_role("button", name="New chat").click()
    page.evaluate("window.goOn()")
    page.wait_for_timeout(300)
    expect(page.locator("#attached img")).to_have_count(0)
    open_conversation(page, "One")
    expect(page.locator("#attached img")).to_have_count(1)


def test_a_stream_that_ends_early_can_go_on(page):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        content_type="text/event-stream", body='data: {"choices": [{"delta": {"content": "9, 10,"}}]}\n\n'))
    say(page, LONG)
    expect(page.locator(".message .failed")).to_have_text("The connection ended before the answer did.")
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".message.assistant .body")).to_have_text(COUNTED, timeout=LATE)


def test_deleting_can_be_undone(page):
    ask(page, LONG)
    page.locator("#conversations li").hover()
    page.get_by_role("button", name="Delete the conversation " + LONG).click()
    expect(page.locator("#conversations li")).to_have_count(0)
    notice(page, "was deleted").get_by_role("button", name="Undo").click()
    expect(page.locator(".message.assistant .body")).to_have_text(COUNTED)
    page.reload()
    expect(page.locator("#conversations li")).to_have_count(1)
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_role("button", name="Delete all conversations").click()
    expect(page.locator("#conversations li")).to_have_count(0)
    notice(page, "was deleted").get_by_role("button", name="Undo").click()
    expect(page.locator("#conversations li")).to_have_count(1)


def test_a_corrupt_picture_does_not_spoil_the_conversation(page):
    whole = (IMAGES / "000.png").read_bytes()
    drop_files(page, [("nonsense.png", "image/png", bytes(100)), ("cut.png", "image/png", whole[:60])])
    expect(notice(page, "nonsense.png was not added")).to_be_visible()
    expect(notice(page, "cut.png was not added")).to_be_visible()
    expect(page.locator("#attached img")).to_have_count(0)
    drop(page, "000.png")
    expect(ask(page, "What number is written in the image?").locator(".body")).to_have_text("6542")


def test_a_picture_that_the_server_refuses_is_left_out(page):
    """Where the browser reads what the server does not, the server's error must not come back with each later message."""
    refused = {"error": {"message": "image 2: the image is neither JPEG, PNG nor WebP", "type": "invalid_request_error"}}
    bodies = []

    def answer(route):
        body = route.request.post_data_json
        bodies.append(body)
        if json.dumps(body).count("image_url") > 3:  # twice for each picture
            route.fulfill(status=400, json=refused)
        else:
            route.continue_()
    page.route("**/v1/chat/completions", answer)
    drop(page, "002.png", "000.png")
    say(page, "What is this?")
    expect(page.locator(".message .failed")).to_contain_text("The picture is left out from now on")
    expect(page.locator(".pictures .refused")).to_have_count(1)
    ask(page, "What is at the left?")
    sent = [part["image_url"]["url"] for m in bodies[-1]["messages"] if isinstance(m["content"], list)
            for part in m["content"] if part["type"] == "image_url"]
    assert len(sent) == 1
    page.problems.clear()  # the status 400


def test_conversations_of_earlier_versions(browser, server):
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url + "/icon.svg")
    page.evaluate("""() => new Promise((resolve) => {
      localStorage.setItem("gemma4-settings", JSON.stringify({temperature: 1, top_p: 0.95, max_tokens: 7}));
      const request = indexedDB.open("gemma4", 1);
      request.onupgradeneeded = () => request.result.createObjectStore("conversations", {keyPath: "id"});
      request.onsuccess = () => {
        const put = request.result.transaction("conversations", "readwrite").objectStore("conversations").put({id: "old", title: "An old one",
          changed: 5, messages: [{role: "user", text: "Question", images: ["data:image/png;base64,iVBORw0KGgo="]},
                                 {role: "assistant", text: "Answer", thinking: "", calls: []}]});
        put.onsuccess = () => { request.result.close(); resolve(); };
      };
    })""")
    page.goto(server.url)
    open_conversation(page, "An old one")
    expect(page.locator(".message.user .bubble")).to_have_text("Question")
    expect(page.locator(".message.assistant .body")).to_have_text("Answer")
    page.get_by_role("button", name="Settings", exact=True).click()
    expect(page.get_by_label("Temperature")).to_have_value("")
    expect(page.get_by_label("Top-p")).to_have_value("")
    expect(page.get_by_label("Longest answer")).to_have_value("7")
    context.close()


# ---- Two tabs.

def test_two_tabs_agree(browser, server):
    context = browser.new_context()
    one, two = visit(context, server.url), visit(context, server.url)
    one.get_by_role("button", name="Settings", exact=True).click()
    one.get_by_label("Temperature").fill("0")
    one.get_by_role("button", name="Done").click()
    ask(one, LONG)
    open_conversation(two, LONG)
    expect(two.locator(".message.assistant .body")).to_have_text(COUNTED)
    ask(two, "Count from 2 to 4.")
    expect(one.locator(".message.assistant .body").last).to_have_text("2, 3, 4.")
    two.get_by_role("button", name="Settings", exact=True).click()
    expect(two.get_by_label("Temperature")).to_have_value("0")
    two.get_by_role("button", name="Done").click()
    one.locator("#conversations li").hover()
    one.get_by_role("button", name="Delete the conversation").click()
    expect(two.locator("#conversations li")).to_have_count(0)
    assert one.problems == two.problems == []
    context.close()


def test_a_draft_is_in_both_tabs(page):
    """The last that wrote is right, and a look at a conversation changes nothing."""
    ask(page, "Count from 9 to 12.")
    other = visit(page.context, page.url)
    open_conversation(other, "Count from")
    other.get_by_role("button", name="New chat").click()
    page.get_by_label("Message", exact=True).fill("from one tab")
    drop_files(page, [("notes.txt", "text/plain", b"A note.")])
    expect(page.locator("#attached .document")).to_have_count(1)
    other.wait_for_function("import('./drafts.js').then(({draftOf}) => import('./state.js').then(({state}) => "
                            "draftOf(state.conversations[0].id).documents.length === 1))")
    open_conversation(other, "Count from")
    expect(other.get_by_label("Message", exact=True)).to_have_value("from one tab")
    expect(other.locator("#attached .document")).to_have_text("notes.txt")
    other.get_by_label("Message", exact=True).fill("from the other")
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_have_value("from the other")
    expect(page.locator("#attached .document")).to_have_text("notes.txt")


def test_a_tab_shows_what_another_is_answering(browser, slow):
    context = browser.new_context()
    one = visit(context, slow.url)
    say(one, LONG)
    expect(one.locator(".message.assistant .body")).to_contain_text("9,", timeout=LATE)
    two = visit(context, slow.url)
    open_conversation(two, LONG)
    expect(two.locator(".message.assistant.busy .body")).to_contain_text("9, 10", timeout=LATE)
    expect(two.get_by_role("button", name="Continue")).to_have_count(0)
    slow.pause = 0
    expect(two.locator(".message.assistant .body")).to_have_text(COUNTED, timeout=LATE)
    expect(two.get_by_role("button", name="Answer again")).to_be_visible()
    expect(one.locator(".message.assistant .body")).to_have_text(COUNTED)
    assert len(slow.asked("/v1/chat/completions")) == 1
    context.close()


def test_two_tabs_add_to_one_conversation(browser, slow):
    """Each has its own answer at the same time, beside the other's."""
    context = browser.new_context()
    slow.pause = 0
    one = visit(context, slow.url)
    ask(one, LONG)
    two = visit(context, slow.url)
    open_conversation(two, LONG)
    expect(two.locator(".message.assistant .body")).to_have_text(COUNTED)
    one.route("**/v1/chat/completions", lambda route: None)  # never answered
    one.get_by_role("button", name="Answer again").click()
    expect(two.locator(".version")).to_have_text("2/2")
    one.get_by_role("button", name="Stop the answer").click()
    two.get_by_role("button", name="Answer again").click()
    expect(two.locator(".version")).to_have_text("3/3")
    expect(two.locator(".message.assistant .body")).to_have_text(COUNTED, timeout=LATE)
    expect(one.locator(".version")).to_have_text("3/3")
    assert len(stored(one)[0]["messages"]) == 4
    context.close()
