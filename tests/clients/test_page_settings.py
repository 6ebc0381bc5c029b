"""Settings: what is sent, and that what is left empty is not."""
import json

import pytest
from browser import ask, browser, page, say, settings, visit  # noqa: F401
from playwright.sync_api import expect


def body_of(page, text="Count from 2 to 4."):
    with page.expect_request("**/v1/chat/completions") as request:
        say(page, text)
    expect(page.get_by_role("button", name="Answer again")).to_be_visible(timeout=30000)
    return request.value.post_data_json


def test_the_checkpoints_own_values_are_not_sent(browser, server):
    context = browser.new_context()
    page = visit(context, server.url)
    assert set(body_of(page)) == {"model", "messages", "stream", "stream_options", "chat_template_kwargs"}
    with settings(page):
        assert page.get_by_label("Temperature").get_attribute("placeholder") == "checkpoint's own (1)"
        assert page.get_by_label("Top-k").get_attribute("placeholder") == "checkpoint's own (64)"
    context.close()


VALUES = {"Temperature": ("temperature", 0.5), "Top-p": ("top_p", 0.9), "Top-k": ("top_k", 20), "Min-p": ("min_p", 0.05),
          "Repetition penalty": ("repetition_penalty", 1.1), "Presence penalty": ("presence_penalty", 0.2),
          "Frequency penalty": ("frequency_penalty", -0.2), "Seed": ("seed", 7), "Longest answer, in tokens": ("max_tokens", 50)}


def test_all_are_sent_kept_and_reset(page):
    page.get_by_role("button", name="Think first").click()
    with settings(page) as dialog:
        for label, (_, value) in VALUES.items():
            dialog.get_by_label(label).fill(str(value))
        dialog.get_by_label("Longest thought").fill("40")
        dialog.get_by_label("Effort of thinking").select_option("low")
        dialog.get_by_label("Detail of pictures").select_option("140")
        dialog.get_by_label("Stop at these texts").fill("END\nSTOP")
    page.reload()
    body = body_of(page)
    for name, value in VALUES.values():
        assert body[name] == value, name
    assert (body["thinking_budget"], body["reasoning_effort"], body["image_budget"], body["stop"]) == (40, "low", 140, ["END", "STOP"])
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert page.locator(".message .failed").count() == 0  # the server takes them all
    with settings(page) as dialog:
        dialog.get_by_role("button", name="Reset").click()
        expect(dialog.get_by_label("Seed")).to_have_value("")
    page.get_by_role("button", name="New chat").click()
    assert set(body_of(page)) == {"model", "messages", "stream", "stream_options", "chat_template_kwargs"}


@pytest.mark.parametrize("label, value, why", [
    ("Temperature", "warm", "This is no number."), ("Temperature", "3", "Between 0 and 2."), ("Top-k", "1.5", "This is no whole number."),
    ("JSON schema", "{", "This is no JSON"), ("JSON schema", "[]", "This is no JSON object."), ("Tools", "{}", "This is no JSON array."),
])
def test_what_is_wrong_is_said_and_not_sent(page, label, value, why):
    with settings(page) as dialog:
        dialog.get_by_label(label).fill(value)
        field = dialog.get_by_label(label)
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(page.locator("#" + field.get_attribute("aria-describedby"))).to_contain_text(why)
    assert not {"response_format", "tools", "top_k"} & set(body_of(page))


def test_a_schema(page):
    with settings(page) as dialog:
        dialog.get_by_label("JSON schema").fill(json.dumps({"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}},
                                                            "required": ["colour"], "additionalProperties": False}))
    answer = ask(page, "Which colour?")
    assert json.loads(answer.locator(".body").inner_text())["colour"] in ("red", "blue")


def test_the_toy_says_that_it_is_one(page):
    expect(page.locator("#toy")).to_contain_text("This model is a toy of 7.4 million parameters")
    expect(page.locator("#toy")).to_contain_text("coloured shapes and digits")


def test_a_large_model_says_nothing_of_the_kind(browser, server):
    context = browser.new_context()

    def large(route):
        answer = route.fetch()
        body = answer.json()
        body["data"][0]["parameters"] = 31_000_000_000
        route.fulfill(response=answer, json=body)
    context.route("**/v1/models", large)
    page = visit(context, server.url)
    expect(page.locator("#toy")).not_to_be_visible()
    context.close()
