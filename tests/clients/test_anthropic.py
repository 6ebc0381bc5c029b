"""The real `anthropic` client against the demo model."""
import json

import anthropic
import pytest
from conftest import picture
from pydantic import BaseModel

TIMER = {"name": "set_timer", "description": "Set a timer in minutes.",
         "input_schema": {"type": "object",
                          "properties": {"minutes": {"type": "integer", "description": "The minutes."}},
                          "required": ["minutes"]}}
COUNT = [{"role": "user", "content": "Count from 9 to 17."}]
COUNTED = "9, 10, 11, 12, 13, 14, 15, 16, 17."
ASK = dict(model="demo", max_tokens=100, extra_body={"temperature": 0})


@pytest.fixture(scope="module")
def client(server):
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def test_models(client):
    assert [m.id for m in client.models.list()] == ["demo"]


def test_message(client):
    answer = client.messages.create(**ASK, messages=COUNT)
    assert answer.content[0].text == COUNTED
    assert answer.stop_reason == "end_turn"


def test_stream(client):
    with client.messages.stream(**ASK, messages=COUNT) as stream:
        assert "".join(stream.text_stream) == COUNTED
        final = stream.get_final_message()
    assert final.usage.output_tokens == 9
    assert final.usage.input_tokens + final.usage.cache_read_input_tokens == 18


LEFT = [{"role": "user", "content": [
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture("002.png")}},
    {"type": "text", "text": "What is at the left?"}]}]


def test_image(client):
    assert client.messages.create(**ASK, messages=LEFT).content[0].text == "A pink circle."


def test_image_stream(client):
    with client.messages.stream(**ASK, messages=LEFT) as stream:
        assert "".join(stream.text_stream) == "A pink circle."


def test_raw_stream_events(client):
    events = [event.type for event in client.messages.create(**ASK, messages=COUNT, stream=True)]
    assert events[:2] == ["message_start", "content_block_start"]
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(events[2:-3]) == {"content_block_delta"}


class Shape(BaseModel):
    color: str
    count: int


SCHEMA = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}, "count": {"type": "integer"}},
          "required": ["color", "count"], "additionalProperties": False}


@pytest.mark.parametrize("stream", [False, True])
def test_schema(client, stream):
    asked = dict(model="demo", max_tokens=300, messages=COUNT, extra_body={"temperature": 0},
                 output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    if stream:
        with client.messages.stream(**asked) as events:
            text = "".join(events.text_stream)
    else:
        text = client.messages.create(**asked).content[0].text
    value = json.loads(text)
    assert value["color"] in ("red", "blue") and isinstance(value["count"], int) and len(value) == 2


def test_schema_of_a_class(client):
    answer = client.messages.parse(**{**ASK, "max_tokens": 300}, messages=COUNT, output_format=Shape)
    assert isinstance(answer.parsed_output, Shape)


@pytest.mark.parametrize("stream", [False, True])
def test_tool_loop(client, stream):
    messages = [{"role": "user", "content": "Set a timer for 6 minutes."}]
    if stream:
        with client.messages.stream(**ASK, messages=messages, tools=[TIMER]) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**ASK, messages=messages, tools=[TIMER])
    assert answer.stop_reason == "tool_use"
    call = next(block for block in answer.content if block.type == "tool_use")
    assert call.name == "set_timer" and call.input == {"minutes": 6}
    messages += [{"role": "assistant", "content": answer.content},
                 {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "The timer runs."}]}]
    asked = dict(**{**ASK, "max_tokens": 20}, messages=messages, tools=[TIMER])
    if stream:
        with client.messages.stream(**asked) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**asked)
    assert answer.role == "assistant" and answer.content and answer.stop_reason in ("end_turn", "max_tokens", "tool_use")
    told = client.messages.count_tokens(model="demo", messages=messages, tools=[TIMER]).input_tokens
    assert told > client.messages.count_tokens(model="demo", messages=messages[:1], tools=[TIMER]).input_tokens + 10


def test_tool_runner(client):
    """The library's own loop. It asks for a thread on the server first, and goes on without one where there is none."""
    ran = []

    @anthropic.beta_tool
    def set_timer(minutes: int) -> str:
        """Set a timer in minutes.

        Args:
            minutes: The minutes.
        """
        ran.append(minutes)
        return "The timer runs."

    messages = [{"role": "user", "content": "Set a timer for 6 minutes."}]
    reasons = [message.stop_reason for message in client.beta.messages.tool_runner(
        **{**ASK, "max_tokens": 30}, messages=messages, tools=[set_timer])]
    assert ran == [6] and reasons[0] == "tool_use" and len(reasons) == 2


def test_forced_tool(client):
    answer = client.messages.create(**ASK, messages=COUNT, tools=[TIMER], tool_choice={"type": "tool", "name": "set_timer"})
    assert answer.content[0].name == "set_timer"


def test_thinking(client):
    with client.messages.stream(model="demo", max_tokens=1500, thinking={"type": "enabled", "budget_tokens": 1024},
                                extra_body={"temperature": 0},
                                messages=[{"role": "user", "content": "What is 3 + 4?"}]) as stream:
        answer = stream.get_final_message()
    assert answer.content[0].type == "thinking" and answer.content[0].thinking


def test_stop_sequence_and_system(client):
    answer = client.messages.create(**ASK, messages=COUNT, stop_sequences=[", 12"])
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == ", 12"
    assert answer.content[0].text == "9, 10, 11"
    plain = client.messages.count_tokens(model="demo", messages=COUNT).input_tokens
    assert client.messages.count_tokens(model="demo", messages=COUNT, system="Be brief.").input_tokens > plain


def test_errors(client, locked_server):
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**ASK, "model": "claude"}, messages=COUNT)
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers"):
        client.messages.create(**{**ASK, "extra_body": {"mcp_servers": [1]}}, messages=COUNT)
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        client.messages.create(**ASK, messages=[])
    with pytest.raises(anthropic.BadRequestError, match="image 1"):
        client.messages.create(**ASK, messages=[{"role": "user", "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}}]}])
    with pytest.raises(anthropic.BadRequestError, match="'example.com' is not allowed"):
        client.messages.create(**ASK, messages=[{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}}]}])
    with pytest.raises(anthropic.BadRequestError, match="2048"):
        with client.messages.stream(**ASK, messages=[{"role": "user", "content": "word " * 5000}]) as stream:
            stream.get_final_message()
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=locked_server.url, api_key="wrong", max_retries=0).messages.create(**ASK, messages=COUNT)
    assert anthropic.Anthropic(base_url=locked_server.url, api_key="sesame").messages.create(**ASK, messages=COUNT)
