"""The real `openai` client against the demo model."""
import json

import openai
import pytest
from conftest import data_url
from pydantic import BaseModel

TIMER = {"type": "function", "function": {
    "name": "set_timer", "description": "Set a timer in minutes.",
    "parameters": {"type": "object", "properties": {"minutes": {"type": "integer", "description": "The minutes."}},
                   "required": ["minutes"]}}}
COUNT = [{"role": "user", "content": "Count from 9 to 17."}]
COUNTED = "9, 10, 11, 12, 13, 14, 15, 16, 17."


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def image_message(*names, text):
    return [{"role": "user", "content": [
        *({"type": "image_url", "image_url": {"url": data_url(name)}} for name in names), {"type": "text", "text": text}]}]


def test_models(client):
    assert [m.id for m in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"


def test_chat(client):
    answer = client.chat.completions.create(model="demo", messages=COUNT, temperature=0)
    assert answer.choices[0].message.content == COUNTED
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream(client):
    text, usage = "", None
    stream = client.chat.completions.create(model="demo", messages=COUNT, temperature=0, stream=True,
                                            stream_options={"include_usage": True})
    for chunk in stream:
        usage = chunk.usage or usage
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
    assert text == COUNTED
    assert usage.completion_tokens == 9


def test_stream_helper_assembles(client):
    with client.chat.completions.stream(model="demo", messages=COUNT, temperature=0) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == COUNTED


def test_image(client):
    messages = image_message("000.png", text="What number is written in the image?")
    answer = client.chat.completions.create(model="demo", messages=messages, temperature=0)
    assert answer.choices[0].message.content == "6542"


def test_image_stream(client):
    messages = image_message("000.png", text="What number is written in the image?")
    stream = client.chat.completions.create(model="demo", messages=messages, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "6542"


def test_two_images(client):
    text = "What number is written in the image?"
    asked = [client.chat.completions.create(model="demo", messages=image_message(*names, text=text), temperature=0, max_tokens=20)
             for names in (["000.png"], ["000.png", "002.png"])]
    # The demo model was not trained on two pictures: its answer does not matter, only that both were read.
    assert asked[1].usage.prompt_tokens > asked[0].usage.prompt_tokens + 40
    assert asked[1].choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_tool_loop(client, stream):
    messages = [{"role": "user", "content": "Set a timer for 6 minutes."}]
    asked = dict(model="demo", messages=messages, tools=[TIMER], temperature=0)
    if stream:
        with client.chat.completions.stream(**asked) as events:
            events.until_done()
            choice = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert call.function.name == "set_timer"
    assert json.loads(call.function.arguments) == {"minutes": 6}
    messages += [choice.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}),
                 {"role": "tool", "tool_call_id": call.id, "content": "The timer runs."}]
    for message in messages:  # the stream helper adds what it parsed
        for tool_call in message.get("tool_calls", []):
            tool_call["function"].pop("parsed_arguments", None)
            tool_call.pop("index", None)
    asked = dict(model="demo", messages=messages, tools=[TIMER], temperature=0, max_tokens=20)
    if stream:
        with client.chat.completions.stream(**asked) as events:
            events.until_done()
            answer = events.get_final_completion()
    else:
        answer = client.chat.completions.create(**asked)
        assert answer.usage.prompt_tokens > 80  # call and result are in it
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_forced_tool(client):
    answer = client.chat.completions.create(
        model="demo", messages=COUNT, tools=[TIMER], temperature=0, max_tokens=60,
        tool_choice={"type": "function", "function": {"name": "set_timer"}})
    assert answer.choices[0].message.tool_calls[0].function.name == "set_timer"
    assert isinstance(json.loads(answer.choices[0].message.tool_calls[0].function.arguments)["minutes"], int)


class Shape(BaseModel):
    color: str
    count: int


def test_schema(client):
    answer = client.chat.completions.parse(model="demo", messages=COUNT, response_format=Shape, temperature=0,
                                           max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Shape)


def test_schema_stream(client):
    with client.chat.completions.stream(model="demo", messages=COUNT, response_format=Shape, temperature=0,
                                        max_tokens=200) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Shape)


def test_json_mode(server, client):
    # The demo model was not trained on JSON. The bias towards the closing brace makes its object end.
    close = int(server.post("/tokenize", {"prompt": "}", "add_special_tokens": False})["tokens"][0])
    answer = client.chat.completions.create(model="demo", messages=COUNT, response_format={"type": "json_object"},
                                            temperature=0, max_tokens=300, logit_bias={str(close): 100})
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_logprobs(client):
    answer = client.chat.completions.create(model="demo", messages=COUNT, temperature=0, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(t.token for t in tokens) == COUNTED
    assert all(t.top_logprobs[0].token == t.token and len(t.top_logprobs) == 3 for t in tokens)


def test_choices_and_seed(client):
    asked = dict(model="demo", messages=COUNT, temperature=2, max_tokens=8)
    many = client.chat.completions.create(**asked, n=3, seed=5)
    again = client.chat.completions.create(**asked, n=3, seed=5)
    assert [c.message.content for c in many.choices] == [c.message.content for c in again.choices]
    assert len(many.choices) == 3


def test_stop(client):
    answer = client.chat.completions.create(model="demo", messages=COUNT, temperature=0, stop=[", 12"])
    assert answer.choices[0].message.content == "9, 10, 11"


def test_thinking(client):
    answer = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "What is 3 + 4?"}],
                                            temperature=0, reasoning_effort="high")
    message = answer.choices[0].message
    assert message.reasoning_content
    assert message.reasoning_content not in (message.content or "")


def test_completions(client):
    prompt = "<bos><|turn>user\nCount from 9 to 17.<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    answer = client.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=40)
    assert answer.choices[0].text == COUNTED
    pieces = client.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=40, stream=True)
    assert "".join(p.choices[0].text for p in pieces) == COUNTED


def test_responses(client):
    answer = client.responses.create(model="demo", input="Count from 9 to 17.", temperature=0)
    assert answer.output_text == COUNTED
    assert answer.status == "completed"
    text = ""
    for event in client.responses.create(model="demo", input="Count from 9 to 17.", temperature=0, stream=True):
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == COUNTED
    assert event.type == "response.completed"
    assert event.response.output_text == COUNTED


def test_responses_stream_helper(client):
    with client.responses.stream(model="demo", input="Count from 9 to 17.", temperature=0) as stream:
        assert stream.get_final_response().output_text == COUNTED


def test_responses_image(client):
    answer = client.responses.create(model="demo", temperature=0, input=[{"role": "user", "content": [
        {"type": "input_image", "image_url": data_url("000.png"), "detail": "auto"},
        {"type": "input_text", "text": "What number is written in the image?"}]}])
    assert answer.output_text == "6542"


@pytest.mark.parametrize("stream", [False, True])
def test_responses_tool_loop(client, stream):
    tools = [{"type": "function", **TIMER["function"]}]
    items = [{"role": "user", "content": "Set a timer for 6 minutes."}]
    if stream:
        with client.responses.stream(model="demo", input=items, tools=tools, temperature=0) as events:
            answer = events.get_final_response()
    else:
        answer = client.responses.create(model="demo", input=items, tools=tools, temperature=0)
    call = answer.output[0]
    assert call.type == "function_call" and json.loads(call.arguments) == {"minutes": 6}
    items += [call.model_dump(exclude_none=True),
              {"type": "function_call_output", "call_id": call.call_id, "output": "The timer runs."}]
    answer = client.responses.create(model="demo", input=items, tools=tools, temperature=0, max_output_tokens=20)
    assert answer.output and answer.usage.input_tokens > 80


def test_responses_parse(client):
    answer = client.responses.parse(model="demo", input="Count from 9 to 17.", text_format=Shape, temperature=0)
    assert isinstance(answer.output_parsed, Shape)


def test_errors(client):
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        client.chat.completions.create(model="gpt-4o", messages=COUNT)
    with pytest.raises(openai.BadRequestError, match="audio") as caught:
        client.chat.completions.create(model="demo", messages=COUNT, audio={"voice": "alloy", "format": "wav"})
    assert caught.value.param == "audio"
    with pytest.raises(openai.BadRequestError, match="'example.com' is not allowed"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]}])
    with pytest.raises(openai.BadRequestError, match="image"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}]}])
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="2048"):
            client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "word " * 5000}], stream=stream)
    with pytest.raises(openai.BadRequestError, match="'resp_1' not found") as caught:
        client.responses.create(model="demo", input="hi", previous_response_id="resp_1")
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
    with pytest.raises(openai.BadRequestError, match="schema"):
        client.chat.completions.create(model="demo", messages=COUNT, response_format={
            "type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}})
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        client.chat.completions.create(model="demo", messages=COUNT, tools=[TIMER],
                                       tool_choice={"type": "function", "function": {"name": "other"}})


def test_key(locked_server):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=locked_server.url + "/v1", api_key="wrong", max_retries=0).models.list()
    assert openai.OpenAI(base_url=locked_server.url + "/v1", api_key="sesame").models.list().data
