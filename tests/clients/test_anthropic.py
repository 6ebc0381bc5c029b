"""The real `anthropic` client against the demo model."""
import anthropic
import pytest
from conftest import picture

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


def test_image(client):
    answer = client.messages.create(**ASK, messages=[{"role": "user", "content": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture("002.png")}},
        {"type": "text", "text": "What is at the left?"}]}])
    assert answer.content[0].text == "A pink circle."


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
    assert client.messages.create(**{**ASK, "max_tokens": 20}, messages=messages, tools=[TIMER]).role == "assistant"


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
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=locked_server.url, api_key="wrong", max_retries=0).messages.create(**ASK, messages=COUNT)
    assert anthropic.Anthropic(base_url=locked_server.url, api_key="sesame").messages.create(**ASK, messages=COUNT)
