"""instructor in all modes that it has for these APIs, and llama-index, which need openai 2."""
import asyncio
from typing import Iterable

import instructor
import pytest
from anthropic import Anthropic
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI
from pydantic import BaseModel

from conftest import IMAGES
from proxy import Proxy

COUNT, COUNTED = "Count from 9 to 17.", "9, 10, 11, 12, 13, 14, 15, 16, 17."
MESSAGES = [{"role": "user", "content": "Set a timer for 6 minutes."}]


class Timer(BaseModel):
    minutes: int


def with_schema(path, body):
    """The toy does not follow a schema that stands in the prompt."""
    schema = Timer.model_json_schema()
    if path == "/v1/messages":
        body["output_format"] = {"type": "json_schema", "schema": schema}
    else:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "Timer", "schema": schema}}
    return "the schema is enforced"


# Its modes for these APIs; the others belong to other providers, and it refuses them.
OF_OPENAI = ["FUNCTIONS", "JSON", "JSON_O1", "JSON_SCHEMA", "MD_JSON", "PARALLEL_TOOLS", "RESPONSES_TOOLS",
             "RESPONSES_TOOLS_WITH_INBUILT_TOOLS", "TOOLS", "TOOLS_STRICT"]
OF_ANTHROPIC = ["ANTHROPIC_JSON", "ANTHROPIC_PARALLEL_TOOLS", "ANTHROPIC_REASONING_TOOLS", "ANTHROPIC_TOOLS"]
OTHERS = ("BEDROCK", "CEREBRAS", "COHERE", "FIREWORKS", "GEMINI", "GENAI", "MISTRAL", "OPENROUTER", "PERPLEXITY", "VERTEXAI",
          "WRITER", "XAI")


def test_all_modes_are_here():
    assert [name for name in sorted(instructor.Mode.__members__) if not name.startswith(OTHERS)] == sorted(OF_OPENAI + OF_ANTHROPIC)


def of_mode(server, mode):
    proxy = Proxy(server.port, with_schema if mode in ("JSON", "MD_JSON", "ANTHROPIC_JSON") else None)
    if mode in OF_ANTHROPIC:
        client = Anthropic(base_url=proxy.url, api_key="none")
        return proxy, instructor.from_anthropic(client, mode=getattr(instructor.Mode, mode))
    return proxy, instructor.from_openai(OpenAI(base_url=proxy.url + "/v1", api_key="none"), mode=getattr(instructor.Mode, mode))


@pytest.mark.parametrize("mode", OF_OPENAI + OF_ANTHROPIC)
def test_instructor(long_server, mode):
    proxy, client = of_mode(long_server, mode)
    ask = dict(model="demo", messages=MESSAGES, max_tokens=2000, max_retries=1)
    if mode in OF_OPENAI:
        ask["temperature"] = 0
    if "PARALLEL" in mode:
        timers = list(client.create(response_model=Iterable[Timer], **ask))
        assert timers and all(isinstance(timer, Timer) for timer in timers)
    else:
        assert isinstance(client.create(response_model=Timer, **ask).minutes, int)
    assert not proxy.refused()


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor_streams(long_server, mode):
    """A value as it grows, from a stream of arguments or of JSON."""
    proxy, client = of_mode(long_server, mode)
    values = list(client.create_partial(model="demo", messages=MESSAGES, response_model=Timer, temperature=0, max_tokens=2000))
    assert len(values) > 1 and isinstance(values[-1].minutes, int)
    assert not proxy.refused()


def test_instructor_by_provider(long_server):
    for provider in ("openai/demo", "ollama/demo"):
        client = instructor.from_provider(provider, base_url=long_server.url + "/v1", api_key="none", mode=instructor.Mode.TOOLS)
        assert isinstance(client.create(messages=MESSAGES, response_model=Timer).minutes, int)


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

    answer = model.predict_and_call([FunctionTool.from_defaults(set_timer)], "Set a timer for 6 minutes.")
    assert ran == [6] and answer.response == "started"
    picture = ChatMessage(blocks=[ImageBlock(path=IMAGES / "002.png"), TextBlock(text="What is at the left?")])
    assert "pink" in model.chat([picture]).message.content
    assert model.complete("Count", max_tokens=4).text
    typed = model.structured_predict(Timer, PromptTemplate("Set a timer for 6 minutes."))
    assert isinstance(typed, Timer)


def test_llama_index_agent(long_server):
    """The tool runs, its result comes back, and the agent ends."""
    ran = []

    def set_timer(minutes: int) -> str:
        """Set a timer in minutes."""
        ran.append(minutes)
        return "started"

    proxy = Proxy(long_server.port)
    model = OpenAILike(model="demo", api_base=proxy.url + "/v1", api_key="none", is_chat_model=True,
                       is_function_calling_model=True, temperature=0, max_tokens=60, context_window=32768)

    async def run():
        return await FunctionAgent(tools=[set_timer], llm=model).run("Set a timer for 6 minutes.")

    assert str(asyncio.run(run()))
    assert ran == [6]
    last = proxy.asked("/v1/chat/completions")[-1]["messages"]
    assert [(message["role"], message["content"]) for message in last if message["role"] == "tool"] == [("tool", "started")]
    assert not proxy.refused()
