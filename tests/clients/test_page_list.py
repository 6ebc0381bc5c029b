"""The list of conversations and each one's options: search, names, pins, system prompts, export and import; long conversations."""
import json

import pytest
from browser import COUNTED, ask, browser, drop, drop_files, notice, open_conversation, page, say, script, settings, stored  # noqa: F401
from conftest import IMAGES
from playwright.sync_api import expect


def titles(page):
    return page.locator("#conversations .name").all_inner_texts()


def converse(page, *questions):
    for question in questions:
        page.get_by_role("button", name="New chat").click()
        ask(page, question)


def options(page):
    page.get_by_role("button", name="This conversation", exact=True).click()
    return page.get_by_role("dialog", name="This conversation")


def test_search(page):
    converse(page, "Count from 9 to 17.", "Spell the word ladder.")
    page.get_by_label("Search conversations").fill("LADDER spell")
    expect(page.locator("#conversations li")).to_have_count(1)
    page.get_by_label("Search conversations").fill("10, 11, 12")  # in an answer
    assert titles(page) == ["Count from 9 to 17."]
    page.get_by_label("Search conversations").fill("nowhere")
    expect(page.get_by_text("No conversation has these words.")).to_be_visible()
    page.get_by_label("Search conversations").fill("")
    expect(page.locator("#conversations li")).to_have_count(2)


def test_rename_and_pin(page):
    converse(page, "Count from 9 to 17.", "Count from 2 to 4.")
    open_conversation(page, "Count from 9")
    dialog = options(page)
    dialog.get_by_label("Name").fill("Numbers")
    dialog.get_by_label("Pinned").check()
    dialog.get_by_role("button", name="Done").click()
    assert titles(page) == ["Numbers", "Count from 2 to 4."]
    converse(page, "Count from 1 to 3.")
    assert titles(page) == ["Numbers", "Count from 1 to 3.", "Count from 2 to 4."]
    page.reload()
    expect(page.locator("#conversations li")).to_have_count(3)
    assert titles(page)[0] == "Numbers"


def test_a_system_prompt_of_one_conversation(page):
    with settings(page):
        page.get_by_label("System prompt", exact=True).fill("For all.")
    asked = []
    page.on("request", lambda request: "completions" in request.url and asked.append(request.post_data_json["messages"][0]))
    dialog = options(page)
    expect(dialog.get_by_label("System prompt of this conversation")).to_have_value("For all.")
    dialog.get_by_label("Has its own system prompt").check()
    dialog.get_by_label("System prompt of this conversation").fill("For this.")
    dialog.get_by_role("button", name="Done").click()
    ask(page, "Count from 2 to 4.")
    page.reload()
    ask(page, "Count from 3 to 5.")
    page.get_by_role("button", name="New chat").click()
    ask(page, "Count from 4 to 6.")
    assert [message["content"] for message in asked] == ["For this.", "For this.", "For all."]


def downloaded(page, action):
    with page.expect_download() as download:
        action()
    return download.value.suggested_filename, open(download.value.path(), "rb").read()


def import_file(page, name, data):
    page.get_by_role("button", name="Settings", exact=True).click()
    page.locator("#import-files").set_input_files({"name": name, "mimeType": "", "buffer": data})


def test_export_and_import_as_json(page):
    drop(page, "000.png")
    drop_files(page, [("a.txt", "text/plain", b"text")])
    script(page, "first")
    ask(page, "What is it?")
    page.unroute("**/v1/chat/completions")
    script(page, "second")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".version")).to_have_text("2/2")
    page.wait_for_timeout(200)
    before = stored(page)
    page.get_by_role("button", name="Settings", exact=True).click()
    name, data = downloaded(page, page.get_by_role("button", name="Export all").click)
    assert name == "gemma4-conversations.json" and len(json.loads(data)["conversations"]) == 1
    page.get_by_role("button", name="Delete all conversations").click()
    expect(page.locator("#conversations li")).to_have_count(0)
    import_file(page, name, data)
    expect(notice(page, "1 conversation from gemma4-conversations.json.")).to_be_visible()
    open_conversation(page, "What is it?")
    expect(page.locator(".version")).to_have_text("2/2")
    page.get_by_role("button", name="Earlier version").click()
    expect(page.locator(".message.assistant .body")).to_have_text("first")
    assert stored(page)[0]["messages"] == before[0]["messages"]
    import_file(page, name, data)  # once more: nothing is doubled
    expect(page.locator("#conversations li")).to_have_count(1)


def test_export_and_import_as_markdown(page):
    drop(page, "000.png")
    drop_files(page, [("a.txt", "text/plain", b"```\n## You\n```\n")])
    script(page, "An answer\n\n## You\n\nwith a heading like ours\n\n```\ncode\n```")
    ask(page, "A question\n## Gemma\nwith another")
    name, data = downloaded(page, options(page).get_by_role("button", name="Export as Markdown").click)
    assert name == "A question Gemma with another.md"
    assert data.startswith(b"# A question ## Gemma with another\n\n## You\n\n![Picture 1](data:image/png;base64,")
    page.get_by_role("dialog", name="This conversation").get_by_role("button", name="Done").click()
    import_file(page, name, data)
    expect(page.locator("#conversations li")).to_have_count(2)
    first, second = stored(page)
    for key in ("role", "text", "images", "documents", "thinking"):
        assert [m.get(key) for m in first["messages"]] == [m.get(key) for m in second["messages"]], key


@pytest.mark.parametrize("name, data, why", [
    ("a.json", b"{", "it is no JSON"),
    ("a.json", b'{"format": "other"}', "it holds no conversations of this page"),
    ("a.json", json.dumps({"format": "gemma4-conversations", "conversations": [{"version": 2, "id": "x", "title": "t", "system": None,
        "pinned": False, "changed": 1, "touched": 1, "chosen": {}, "queue": [], "messages": [{"id": "a", "parent": None, "role": "user",
        "rev": 1, "text": "t", "images": [{"src": "http://evil.example/x.png"}]}]}]}).encode(), "a conversation in it is damaged"),
    ("a.md", b"# Title\n\nno turns", 'it has no line "## You"'),
])
def test_a_file_that_is_no_export(page, name, data, why):
    import_file(page, name, data)
    expect(notice(page, f"{name} was not imported: {why}")).to_be_visible()
    assert stored(page) == []


def test_jump_to_the_end(page):
    script(page, "\n\n".join(f"Paragraph {i}" for i in range(80)))
    ask(page, "Much.")
    jump = page.get_by_role("button", name="Jump to the end")
    expect(jump).not_to_be_visible()
    page.locator("#scroll").evaluate("(node) => { node.scrollTop = 0; }")
    expect(jump).to_be_visible()
    jump.click()
    expect(jump).not_to_be_visible()
    expect(page.locator("#log").get_by_text("Paragraph 79")).to_be_in_viewport()


def test_reading_above_is_not_disturbed(page):
    script(page, "\n\n".join(f"Paragraph {i}" for i in range(80)))
    ask(page, "Much.")
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: None)  # never answered
    say(page, "More.")
    expect(page.locator(".message.assistant.busy")).to_be_in_viewport()
    page.locator("#scroll").evaluate("(node) => { node.scrollTop = 100; }")
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.locator(".message.assistant .stats").last).to_have_text("stopped")
    assert page.locator("#scroll").evaluate("(node) => node.scrollTop") == 100
