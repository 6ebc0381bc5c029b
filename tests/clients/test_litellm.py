"""LiteLLM's providers for OpenAI's and Anthropic's API, against the demo model."""
import json

import litellm
import pytest

from conftest import data_url

COUNT, COUNTED = [{"role": "user", "content": "Count from 9 to 17."}], "9, 10, 11, 12, 13, 14, 15, 16, 17."
TOOL = {"type": "function", "function": {"name": "set_timer", "description": "Set a timer in minutes.", "parameters": {
    "type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]}}}


@pytest.fixture(params=["openai", "hosted_vllm", "anthropic"])
def ask(server, request):
    base = server.url if request.param == "anthropic" else server.url + "/v1"

    def run(messages, **more):
        more = {"temperature": 0, "max_tokens": 80, **more}
        return litellm.completion(f"{request.param}/demo", messages=messages, api_base=base, api_key="none", **more)

    return run


def test_answers(ask):
    assert ask(COUNT).choices[0].message.content == COUNTED
    assert "".join(piece.choices[0].delta.content or "" for piece in ask(COUNT, stream=True)) == COUNTED


def test_pictures(ask):
    picture = {"type": "image_url", "image_url": {"url": data_url("002.png")}}
    assert ask([{"role": "user", "content": [picture, {"type": "text", "text": "What is at the left?"}]}]).choices[0].message.content


def test_tools(ask):
    messages = [{"role": "user", "content": "Set a timer for 6 minutes."}]
    message = ask(messages, tools=[TOOL]).choices[0].message
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls][0][0] == "set_timer"
    messages += [message.model_dump(exclude_none=True),
                 {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "started"}]
    assert ask(messages, tools=[TOOL]).choices[0].message.content


def test_embeddings_are_refused(server):
    with pytest.raises(litellm.BadRequestError, match="makes no embeddings"):
        litellm.embedding("openai/demo", input=["x"], api_base=server.url + "/v1", api_key="none")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_has_its_own_class(ask, stream):
    """By this class LiteLLM's fallbacks, aider and agents know that they must shorten the conversation."""
    with pytest.raises(litellm.ContextWindowExceededError, match="2048"):
        list(ask([{"role": "user", "content": "word " * 5000}], stream=stream))


def test_other_errors_have_theirs(ask, server):
    with pytest.raises(litellm.BadRequestError) as caught:
        ask(COUNT, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "other"}})
    assert not isinstance(caught.value, litellm.ContextWindowExceededError)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion("openai/other", messages=COUNT, api_base=server.url + "/v1", api_key="none")


def test_keys(locked_server):
    for model, base in (("openai/demo", "/v1"), ("anthropic/demo", "")):
        ask_locked = dict(model=model, messages=COUNT, api_base=locked_server.url + base, max_tokens=60, temperature=0)
        with pytest.raises(litellm.AuthenticationError):
            litellm.completion(api_key="wrong", **ask_locked)
        assert litellm.completion(api_key="sesame", **ask_locked).choices[0].message.content == COUNTED


def test_schema(ask):
    schema = {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"],
              "additionalProperties": False}
    answer = ask([{"role": "user", "content": "Set a timer for 6 minutes."}], max_tokens=300, response_format={
        "type": "json_schema", "json_schema": {"name": "timer", "schema": schema, "strict": True}})
    assert isinstance(json.loads(answer.choices[0].message.content)["minutes"], int)


def test_responses(server):
    answer = litellm.responses(model="openai/demo", input="Count from 9 to 17.", temperature=0, api_base=server.url + "/v1",
                               api_key="none")
    assert answer.output[0].content[0].text == COUNTED
    more = litellm.responses(model="openai/demo", input="What is 16 + 3?", temperature=0, api_base=server.url + "/v1",
                             api_key="none", previous_response_id=answer.id, max_output_tokens=20)
    assert more.usage.input_tokens > answer.usage.input_tokens + answer.usage.output_tokens
