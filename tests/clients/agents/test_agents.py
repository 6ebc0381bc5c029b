"""Agent libraries against a variant of the demo model with a long context: tools, typed answers, streams and pictures."""
import asyncio

import agents
import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from smolagents import OpenAIServerModel, Tool, ToolCallingAgent

from conftest import IMAGES, data_url
from proxy import Proxy, pin_tool

COUNT, COUNTED = "Count from 9 to 17.", "9, 10, 11, 12, 13, 14, 15, 16, 17."
TIMER = "Set a timer for 6 minutes."


class Timer(BaseModel):
    minutes: int


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
    assert Agent(model, model_settings={"temperature": 0}).run_sync(["What is at the left?", picture]).output


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
    kinds = [type(message).__name__ for message in agent.invoke({"messages": [("user", TIMER)]})["messages"]]
    assert kinds == ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"]


def test_langchain_typed_agent(long_server):
    model = chat_models(long_server)["openai"]()
    agent = create_agent(model, tools=[set_timer], response_format=ProviderStrategy(Timer))
    answer = agent.invoke({"messages": [("user", TIMER)]})
    assert isinstance(answer["structured_response"], Timer)
    assert "ToolMessage" in [type(message).__name__ for message in answer["messages"]]


def test_langchain_picture(long_server):
    message = HumanMessage([{"type": "image_url", "image_url": {"url": data_url("002.png")}},
                            {"type": "text", "text": "What is at the left?"}])
    assert chat_models(long_server)["openai"]().invoke([message]).content


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
