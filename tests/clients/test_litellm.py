"""LiteLLM's providers for OpenAI's and Anthropic's API, against the demo model."""
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
