"""Agent libraries against a variant of the demo model with a long context: tools, typed answers, streams and pictures."""
import asyncio
import sys

import agents
import pytest
from agents.memory import OpenAIResponsesCompactionSession
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from smolagents import CodeAgent, OpenAIServerModel, Tool, ToolCallingAgent

import pages
from conftest import IMAGES, Served, data_url
from proxy import Proxy, cold, pin_tool

COUNT, COUNTED = "Count from 9 to 17.", "9, 10, 11, 12, 13, 14, 15, 16, 17."
TIMER = "Set a timer for 6 minutes."


class Timer(BaseModel):
    minutes: int


@pytest.mark.parametrize("page", ["agents.md", "langchain.md"])
def test_page(long_server, tmp_path, page):
    proxy = Proxy(long_server.port, cold)
    printed = pages.run([sys.executable, "-W", "ignore", "-c", pages.code(page, "python", proxy.url)], tmp_path)
    assert printed.count(COUNTED) == 2
    assert not proxy.refused()


# openai-agents

def agents_model(server, responses):
    client = AsyncOpenAI(base_url=server.url + "/v1", api_key="none")
    agents.set_tracing_disabled(True)
    kind = agents.OpenAIResponsesModel if responses else agents.OpenAIChatCompletionsModel
    return kind(model="demo", openai_client=client)


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("typed", [False, True])
def test_openai_agents(long_server, responses, typed):
    ran = []

    @agents.function_tool
    def set_timer(minutes: int) -> str:
        """Set a timer in minutes."""
        ran.append(minutes)
        return "started"

    agent = agents.Agent(name="a", tools=[set_timer], model=agents_model(long_server, responses),
                         model_settings=agents.ModelSettings(temperature=0), output_type=Timer if typed else None)
    result = agents.Runner.run_sync(agent, TIMER)
    assert ran == [6]
    kinds = [type(item).__name__ for item in result.new_items]
    assert kinds == ["ToolCallItem", "ToolCallOutputItem", "MessageOutputItem"]
    assert isinstance(result.final_output, Timer if typed else str)


def test_openai_agents_streams(long_server):
    async def run():
        agent = agents.Agent(name="a", model=agents_model(long_server, True),
                             model_settings=agents.ModelSettings(temperature=0))
        result = agents.Runner.run_streamed(agent, COUNT)
        deltas = [event.data.delta async for event in result.stream_events()
                  if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"]
        return "".join(deltas), result.final_output

    assert asyncio.run(run()) == (COUNTED, COUNTED)


def test_openai_agents_session(long_server):
    """A conversation that the server keeps: the second question has the first before it, and the last item is taken back."""
    async def run():
        client = AsyncOpenAI(base_url=long_server.url + "/v1", api_key="none")
        session = agents.OpenAIConversationsSession(openai_client=client)
        agent = agents.Agent(name="a", model=agents.OpenAIResponsesModel(model="demo", openai_client=client),
                             model_settings=agents.ModelSettings(temperature=0, max_tokens=40))
        first = await agents.Runner.run(agent, COUNT, session=session)
        second = await agents.Runner.run(agent, "What is 16 + 3?", session=session)
        last = await session.pop_item()
        left = await session.get_items()
        newest = await session.get_items(limit=1)
        await session.clear_session()
        return first, second, last, left, newest

    first, second, last, left, newest = asyncio.run(run())
    assert first.final_output == COUNTED
    assert second.raw_responses[0].usage.input_tokens > first.raw_responses[0].usage.input_tokens + 20
    assert last["role"] == "assistant" and second.final_output in str(last["content"])
    assert [item["role"] for item in left] == ["user", "assistant", "user"] and newest == left[-1:]


def test_openai_agents_compaction(long_server):
    """A session that is compacted after each turn, at /v1/responses/compact. The library wants one of OpenAI's names for it."""
    served = Served("--model-name", "gpt-4.1", model=long_server.model, context=())

    def change(path, body):  # after a summary the toy says anything, for long
        if path == "/v1/responses":
            body["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": {"const": 9}}}
            return "the answer 9"
        return cold(path, body)

    proxy = Proxy(served.port, change)

    async def run():
        client = AsyncOpenAI(base_url=proxy.url + "/v1", api_key="none")
        session = OpenAIResponsesCompactionSession("s", agents.SQLiteSession("s"), client=client, model="gpt-4.1",
                                                   should_trigger_compaction=lambda _: True)
        agent = agents.Agent(name="a", model=agents.OpenAIResponsesModel(model="demo", openai_client=client),
                             model_settings=agents.ModelSettings(temperature=0, max_tokens=40))
        first = await agents.Runner.run(agent, COUNT, session=session)
        items = [await session.get_items()]
        await agents.Runner.run(agent, COUNT, session=session)
        return first.final_output, items + [await session.get_items()]

    answer, sessions = asyncio.run(run())
    assert answer == "9" and not proxy.refused()
    assert [[item["type"] for item in items] for items in sessions] == [["message", "compaction"],
                                                                        ["message", "message", "compaction"]]
    assert any(item["type"] == "compaction" for item in proxy.asked("/v1/responses")[1]["input"])
    assert served.stop() == 0


def test_openai_agents_hand_over(long_server):
    """One agent hands the conversation over to another, whose tool returns a picture that the model then has before it."""
    def change(path, body):
        called = sum(item.get("type") == "function_call_output" for item in body["input"])
        return pin_tool(body, body["tools"][0]["name"], {}) if body["tools"] and called < 2 else None

    proxy = Proxy(long_server.port, change)
    model, settings = agents_model(proxy, True), agents.ModelSettings(temperature=0, max_tokens=40)

    @agents.function_tool
    def take_picture() -> agents.ToolOutputImage:
        """Take a picture."""
        return agents.ToolOutputImage(image_url=data_url("002.png"))

    second = agents.Agent(name="second", tools=[take_picture], model=model, model_settings=settings)
    first = agents.Agent(name="first", handoffs=[second], model=model, model_settings=settings)
    result = agents.Runner.run_sync(first, "What is at the left?")
    assert result.last_agent.name == "second" and result.final_output
    assert "input_image" in str(proxy.asked("/v1/responses")[2]["input"][-1]["output"])

    message = {"role": "user", "content": [{"type": "input_image", "image_url": data_url("002.png")},
                                           {"type": "input_text", "text": "What is at the left?"}]}
    plain = agents.Agent(name="plain", model=model, model_settings=settings)
    assert "pink" in agents.Runner.run_sync(plain, [message]).final_output
    assert not proxy.refused()


# pydantic-ai

@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
@pytest.mark.parametrize("output", [NativeOutput, ToolOutput])
def test_pydantic_ai(long_server, kind, output):
    ran = []

    def set_timer(minutes: int) -> str:
        """Set a timer in minutes."""
        ran.append(minutes)
        return "started"

    model = kind("demo", provider=OpenAIProvider(base_url=long_server.url + "/v1", api_key="none"))
    agent = Agent(model, output_type=output(Timer), tools=[set_timer] if output is NativeOutput else [],
                  model_settings={"temperature": 0})
    assert isinstance(agent.run_sync(TIMER).output, Timer)
    assert ran == ([6] if output is NativeOutput else [])


def test_pydantic_ai_picture(long_server):
    model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=long_server.url + "/v1", api_key="none"))
    picture = BinaryContent(data=(IMAGES / "002.png").read_bytes(), media_type="image/png")
    assert "pink" in Agent(model, model_settings={"temperature": 0}).run_sync(["What is at the left?", picture]).output


def test_pydantic_ai_of_anthropic(long_server):
    ran = []

    def set_timer(minutes: int) -> str:
        """Set a timer in minutes."""
        ran.append(minutes)
        return "started"

    model = AnthropicModel("demo", provider=AnthropicProvider(base_url=long_server.url, api_key="none"))
    settings = {"temperature": 0, "max_tokens": 60}
    assert Agent(model, model_settings=settings).run_sync(COUNT).output == COUNTED
    answer = Agent(model, tools=[set_timer], model_settings=settings).run_sync(TIMER)
    assert ran == [6] and answer.output
    typed = Agent(model, output_type=ToolOutput(Timer), model_settings={"temperature": 0, "max_tokens": 200})
    assert isinstance(typed.run_sync(TIMER).output, Timer)


def test_a_large_vocabulary(wide_server):
    """262,144 words: a tool, then an answer of a schema, as with the small one."""
    ran = []

    def set_timer(minutes: int) -> str:
        """Set a timer in minutes."""
        ran.append(minutes)
        return "started"

    model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=wide_server.url + "/v1", api_key="none"))
    settings = {"temperature": 0, "max_tokens": 200}
    assert Agent(model, model_settings=settings).run_sync(COUNT).output == COUNTED
    agent = Agent(model, output_type=NativeOutput(Timer), tools=[set_timer], model_settings=settings)
    assert isinstance(agent.run_sync(TIMER).output, Timer)
    assert len(ran) == 1 and isinstance(ran[0], int)  # which number: other words around it are new to the toy


# langchain

def set_timer(minutes: int) -> str:
    """Set a timer in minutes."""
    return "started"


def chat_models(server):
    return {"openai": lambda: ChatOpenAI(base_url=server.url + "/v1", api_key="none", model="demo", temperature=0),
            "anthropic": lambda: ChatAnthropic(base_url=server.url, api_key="none", model="demo", temperature=0),
            "ollama": lambda: ChatOllama(base_url=server.url, model="demo", temperature=0)}


@pytest.mark.parametrize("api", ["openai", "anthropic", "ollama"])
def test_langchain(long_server, api):
    model = chat_models(long_server)[api]()
    assert model.invoke(COUNT).content == COUNTED
    pieces = [chunk.text if isinstance(chunk.text, str) else chunk.text() for chunk in model.stream(COUNT)]
    assert "".join(pieces) == COUNTED
    calls = model.bind_tools([set_timer]).invoke(TIMER).tool_calls
    assert [(call["name"], call["args"]) for call in calls] == [("set_timer", {"minutes": 6})]
    agent = create_agent(model, tools=[set_timer])
    messages = agent.invoke({"messages": [("user", TIMER)]})["messages"]
    assert [type(message).__name__ for message in messages] == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]
    assert messages[2].content == "started"
    assert isinstance(model.with_structured_output(Timer).invoke(TIMER), Timer)


def test_langchain_typed_agent(long_server):
    model = chat_models(long_server)["openai"]()
    agent = create_agent(model, tools=[set_timer], response_format=ProviderStrategy(Timer))
    answer = agent.invoke({"messages": [("user", TIMER)]})
    assert isinstance(answer["structured_response"], Timer)
    assert "ToolMessage" in [type(message).__name__ for message in answer["messages"]]


def test_langchain_picture(long_server):
    message = HumanMessage([{"type": "image_url", "image_url": {"url": data_url("002.png")}},
                            {"type": "text", "text": "What is at the left?"}])
    for api in ("openai", "anthropic", "ollama"):
        assert "pink" in chat_models(long_server)[api]().invoke([message]).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_of_responses(long_server, method):
    model = ChatOpenAI(base_url=long_server.url + "/v1", api_key="none", model="demo", temperature=0, use_responses_api=True,
                       use_previous_response_id=True)
    answer = model.invoke(COUNT)
    assert answer.text == COUNTED
    more = model.invoke([("user", COUNT), answer, ("user", "What is 16 + 3?")])
    assert more.usage_metadata["input_tokens"] > 30  # the first question is there, by its id
    assert isinstance(model.with_structured_output(Timer, method=method).invoke(TIMER), Timer)


# smolagents

class TimerTool(Tool):
    name = "set_timer"
    description = "Set a timer in minutes."
    inputs = {"minutes": {"type": "integer", "description": "The minutes."}}
    output_type = "string"

    def forward(self, minutes: int) -> str:
        return f"a timer of {minutes} minutes runs"


def test_smolagents(long_server):
    """Its instructions have thousands of tokens: the proxy forces the tool, then the final answer."""
    def change(path, body):
        called = any("a timer of 6 minutes runs" in str(message["content"]) for message in body["messages"])
        return pin_tool(body, "final_answer", {"answer": "done"}) if called else pin_tool(body, "set_timer", {"minutes": 6})

    proxy = Proxy(long_server.port, change)
    model = OpenAIServerModel("demo", api_base=proxy.url + "/v1", api_key="none")
    agent = ToolCallingAgent(tools=[TimerTool()], model=model, max_steps=3, verbosity_level=0)
    assert agent.run(TIMER) == "done"
    assert not proxy.refused()


def test_smolagents_code(long_server):
    """The proxy gives the program that the model writes; the agent runs it, and with it the tool."""
    program = "I set the timer.\n<code>\nfinal_answer(set_timer(6))\n</code>"

    def change(path, body):
        body["structured_outputs"] = {"choice": [program]}
        return "the program is given"

    proxy = Proxy(long_server.port, change)
    model = OpenAIServerModel("demo", api_base=proxy.url + "/v1", api_key="none")
    agent = CodeAgent(tools=[TimerTool()], model=model, max_steps=2, verbosity_level=0)
    assert agent.run(TIMER) == "a timer of 6 minutes runs"
    assert not proxy.refused()
