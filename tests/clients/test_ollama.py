"""The `ollama` package, and LiteLLM's providers that speak Ollama's API, against the demo model."""
import litellm
import ollama
import pytest
from pydantic import BaseModel

from conftest import picture

COUNT = [{"role": "user", "content": "Count from 9 to 17."}]
COUNTED = "9, 10, 11, 12, 13, 14, 15, 16, 17."


@pytest.fixture()
def client(server):
    return ollama.Client(host=server.url)


def set_timer(minutes: int) -> str:
    """Set a timer in minutes.

    Args:
      minutes: The minutes.
    """
    return f"A timer of {minutes} minutes runs."


def test_lists(client):
    model = client.list().models[0]
    assert model.model == "demo:latest" and model.size > 1 << 20 and model.details.family == "gemma4"
    running = client.ps().models[0]
    assert running.model == "demo:latest" and running.context_length == 2048
    shown = client.show("demo")
    assert {"completion", "tools", "thinking", "vision"} <= set(shown.capabilities)
    assert shown.modelinfo["gemma4.context_length"] == 2048


def test_chat(client):
    answer = client.chat("demo", COUNT, options={"temperature": 0})
    assert answer.message.content == COUNTED and answer.done and answer.done_reason == "stop"
    assert answer.eval_count > 5 and answer.total_duration > 0 and answer.eval_duration > 0
    pieces = list(client.chat("demo:latest", COUNT, options={"temperature": 0}, stream=True))
    assert "".join(piece.message.content for piece in pieces) == COUNTED
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert client.chat("demo", COUNT, options={"temperature": 0, "num_predict": 3}).done_reason == "length"


def test_generate(client):
    first = client.generate("demo", "Count from 9 to 17.", options={"temperature": 0})
    assert first.response == COUNTED
    second = client.generate("demo", "What is 16 + 3?", context=first.context, options={"temperature": 0})
    assert second.prompt_eval_count > first.prompt_eval_count + first.eval_count
    raw = client.generate("demo", "Count", raw=True, options={"num_predict": 4}, stream=True)
    assert sum(piece.done for piece in raw) == 1
    assert client.generate("demo").done_reason == "load"


def test_pictures(client, server):
    question = "What is at the left?"
    message = {"role": "user", "content": question, "images": [picture("002.png")]}
    answer = client.chat("demo", [message], options={"temperature": 0}).message.content
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + picture("002.png")}}
    same = server.post("/v1/chat/completions", {"model": "demo", "temperature": 0, "messages": [
        {"role": "user", "content": [url, {"type": "text", "text": question}]}]})
    assert answer == same["choices"][0]["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client, stream):
    messages = [{"role": "user", "content": "Set a timer for 6 minutes."}]
    answer = client.chat("demo", messages, tools=[set_timer], options={"temperature": 0}, stream=stream)
    calls = [call for part in (answer if stream else [answer]) for call in part.message.tool_calls or []]
    assert [(call.function.name, call.function.arguments) for call in calls] == [("set_timer", {"minutes": 6})]
    messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    messages.append({"role": "tool", "tool_name": "set_timer", "content": set_timer(**calls[0].function.arguments)})
    assert client.chat("demo", messages, tools=[set_timer], options={"temperature": 0}).message.content


def test_format(client):
    class Timer(BaseModel):
        minutes: int

    message = [{"role": "user", "content": "Set a timer for 6 minutes."}]
    answer = client.chat("demo", message, format=Timer.model_json_schema(), options={"seed": 3})
    assert isinstance(Timer.model_validate_json(answer.message.content).minutes, int)
    # The toy may write blanks for as long as it can: only the beginning counts.
    text = client.chat("demo", message, format="json", options={"temperature": 0, "num_predict": 200}).message.content
    assert text.lstrip()[:1] in ("{", "[", "")


def test_thinking(client):
    answer = client.chat("demo", COUNT, think=True, options={"temperature": 0})
    assert answer.message.thinking
    assert not client.chat("demo", COUNT, think=False, options={"temperature": 0}).message.thinking


def test_errors(client):
    with pytest.raises(ollama.ResponseError) as wrong:
        client.chat("other", COUNT)
    assert wrong.value.status_code == 404 and "model 'other' not found" in wrong.value.error
    with pytest.raises(ollama.ResponseError) as embed:
        client.embed("demo", "text")
    assert embed.value.status_code == 400 and "no embeddings" in embed.value.error


def test_keys(locked_server):
    with pytest.raises(ollama.ResponseError) as refused:
        ollama.Client(host=locked_server.url).chat("demo", COUNT)
    assert refused.value.status_code == 401
    client = ollama.Client(host=locked_server.url, headers={"Authorization": "Bearer sesame"})
    assert client.chat("demo", COUNT, options={"temperature": 0}).message.content == COUNTED


@pytest.mark.parametrize("provider", ["ollama_chat", "ollama"])
def test_litellm(server, provider):
    # The provider "ollama" writes a prompt of its own from the messages, so what the toy answers does not count there.
    ask = dict(model=f"{provider}/demo", messages=COUNT, api_base=server.url, temperature=0, max_tokens=60)
    text = litellm.completion(**ask).choices[0].message.content
    assert text == COUNTED if provider == "ollama_chat" else text
    pieces = [piece.choices[0].delta.content or "" for piece in litellm.completion(**ask, stream=True)]
    assert "".join(pieces) == text
