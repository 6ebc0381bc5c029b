"""instructor in all modes that it has for these APIs, and llama-index, which need openai 2."""
import instructor
import pytest
from anthropic import Anthropic
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI
from pydantic import BaseModel

from proxy import Proxy

COUNT, COUNTED = "Count from 9 to 17.", "9, 10, 11, 12, 13, 14, 15, 16, 17."
MESSAGES = [{"role": "user", "content": "Set a timer for 6 minutes."}]


class Timer(BaseModel):
    minutes: int


def with_schema(path, body):
    """The toy does not follow a schema that stands in the prompt."""
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "Timer", "schema": Timer.model_json_schema()}}
    return "the schema is enforced"


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "JSON", "MD_JSON", "PARALLEL_TOOLS",
                                  "RESPONSES_TOOLS"])
def test_instructor(long_server, mode):
    change = with_schema if mode in ("JSON", "MD_JSON") else None
    proxy = Proxy(long_server.port, change)
    client = OpenAI(base_url=proxy.url + "/v1", api_key="none")
    wrapped = instructor.from_openai(client, mode=getattr(instructor.Mode, mode))
    if mode == "PARALLEL_TOOLS":
        from typing import Iterable

        timers = list(wrapped.chat.completions.create(model="demo", messages=MESSAGES, response_model=Iterable[Timer],
                                                      temperature=0))
        assert timers and all(isinstance(timer, Timer) for timer in timers)
    else:
        answer = wrapped.create(model="demo", messages=MESSAGES, response_model=Timer, temperature=0, max_retries=1)
        assert isinstance(answer.minutes, int)
    assert not proxy.refused()


@pytest.mark.parametrize("mode", ["ANTHROPIC_TOOLS", "ANTHROPIC_JSON"])
def test_instructor_anthropic(long_server, mode):
    def change(path, body):
        if mode == "ANTHROPIC_TOOLS":
            return None
        body["output_format"] = {"type": "json_schema", "schema": Timer.model_json_schema()}
        return "the schema is enforced"

    proxy = Proxy(long_server.port, change)
    client = instructor.from_anthropic(Anthropic(base_url=proxy.url, api_key="none"), mode=getattr(instructor.Mode, mode))
    answer = client.create(model="demo", messages=MESSAGES, response_model=Timer, max_tokens=200, max_retries=1)
    assert isinstance(answer.minutes, int)
    assert not proxy.refused()


def test_llama_index(long_server):
    model = OpenAILike(model="demo", api_base=long_server.url + "/v1", api_key="none", is_chat_model=True,
                       is_function_calling_model=True, temperature=0, context_window=32768)
    assert model.chat([ChatMessage("" + COUNT)]).message.content == COUNTED
    assert "".join(piece.delta for piece in model.stream_chat([ChatMessage(COUNT)])) == COUNTED
    ran = []

    def set_timer(minutes: int) -> str:
        """Set a timer in minutes."""
        ran.append(minutes)
        return "started"

    model.predict_and_call([FunctionTool.from_defaults(set_timer)], "Set a timer for 6 minutes.")
    assert ran == [6]
