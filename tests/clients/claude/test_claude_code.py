"""Claude Code, the program in the wheel of claude-agent-sdk, unmodified, against a variant of the demo model with a long
context. Its prompts have thousands of tokens of instructions: the proxy forces calls with arguments that make sense."""
import asyncio
import os
import pathlib
import shutil
import subprocess

import claude_agent_sdk
import pytest

import pages
from conftest import IMAGES, Served
from proxy import Proxy, pin_tool

ANSWER = "The lamp is lit."
CLAUDE = pathlib.Path(claude_agent_sdk.__file__).parent / "_bundled/claude"


def environment_of(proxy, folder):
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "ANTHROPIC_BASE_URL": proxy.url,
            "ANTHROPIC_AUTH_TOKEN": "none", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}


def run_claude(proxy, folder, prompt, *options, **variables):
    environment = {**environment_of(proxy, folder), **variables}
    command = [str(CLAUDE), "-p", prompt, "--model", "demo", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=550)
    print(done.stdout[-2000:], done.stderr[-2000:])
    return done


def answer_shortly(path, body):
    """A toy would write until a limit cuts it, and Claude Code would ask it to go on: so its answer is given. A call may come
    in place of it, but once."""
    if "messages" not in body or "count_tokens" in path:
        return None
    body["max_tokens"] = 400
    body["thinking"] = {"type": "disabled"}
    body["output_format"] = {"type": "json_schema", "schema": {"const": ANSWER}}
    if any(message["role"] == "assistant" for message in body["messages"]):
        body["tool_choice"] = {"type": "none"}
    return f"the answer {ANSWER} without a thought"


def tool_results(body):
    return [block for message in body["messages"] if isinstance(message["content"], list) for block in message["content"]
            if block.get("type") == "tool_result"]


def forces(tool, arguments):
    """Changes of a proxy: a call of the tool is forced, until a result comes back."""
    def change(path, body):
        what = answer_shortly(path, body)
        if what and tool in [one.get("name") for one in body.get("tools", [])] and not tool_results(body):
            return pin_tool(body, tool, arguments)
        return what

    return change


def returned(proxy):
    """The content of the first result that came back."""
    results = [one for body in proxy.asked("/v1/messages") for one in tool_results(body)]
    assert results, "no result came back"
    return results[0]["content"]


def test_page(long_server, tmp_path):
    proxy = Proxy(long_server.port, answer_shortly)
    printed = pages.run(pages.shell(pages.code("claude-code.md", "sh", proxy.url)), tmp_path,
                        {"PATH": f"{CLAUDE.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "DISABLE_AUTOUPDATER": "1"},
                        timeout=550)
    assert printed.strip() == f'"{ANSWER}"'
    assert not proxy.refused()
    assert any(body.get("tools") for body in proxy.asked("/v1/messages"))


def test_a_full_context_is_summarised(long_server, tmp_path):
    """As the page says, Claude Code is told how long the context is, and then compacts its conversation in time."""
    proxy = Proxy(long_server.port, answer_shortly)
    run_claude(proxy, tmp_path, "Count from 9 to 17.", CLAUDE_CODE_MAX_CONTEXT_TOKENS="38000")
    assert any("<summary>" in str(body["messages"][-1]["content"]) for body in proxy.asked("/v1/messages"))
    assert not proxy.refused()


def test_a_prompt_that_does_not_fit_is_known(long_server, tmp_path):
    """It does not take the error for one of the network, and says what it is."""
    served = Served(model=long_server.model, context=("--max-seq-len", "8192"))
    done = run_claude(Proxy(served.port), tmp_path, "Count from 9 to 17.")
    assert done.returncode == 1 and "Prompt is too long" in done.stdout
    assert served.stop() == 0


def test_a_large_vocabulary(wide_server, tmp_path):
    proxy = Proxy(wide_server.port, answer_shortly)
    done = run_claude(proxy, tmp_path, "Count from 9 to 17.")
    assert done.returncode == 0 and done.stdout.strip() == f'"{ANSWER}"'
    assert not proxy.refused()


@pytest.mark.parametrize("tool, arguments, result", [
    ("Read", {"file_path": "FOLDER/note.txt"}, "the lamp is green"),
    ("Bash", {"command": "cat note.txt > copy.txt && echo copied", "description": "Copies the note"}, "copied"),
    ("Write", {"file_path": "FOLDER/new.txt", "content": "green\nlamp\n"}, "new.txt"),
])
def test_tool(long_server, tmp_path, tool, arguments, result):
    """The tool runs, and its result comes back."""
    (tmp_path / "note.txt").write_text("the lamp is green\n")
    arguments = {name: value.replace("FOLDER", str(tmp_path)) for name, value in arguments.items()}
    proxy = Proxy(long_server.port, forces(tool, arguments))
    done = run_claude(proxy, tmp_path, "What does the note say?", "--allowedTools", "Read", "Bash", "Write")
    assert done.returncode == 0, done.stdout
    assert not proxy.refused()
    assert result in str(returned(proxy))
    if tool == "Bash":
        assert (tmp_path / "copy.txt").read_text() == "the lamp is green\n"
    if tool == "Write":
        assert (tmp_path / "new.txt").read_text() == "green\nlamp\n"


def test_picture(long_server, tmp_path):
    """A picture that it reads arrives, in a tool's result."""
    shutil.copy(IMAGES / "002.png", tmp_path / "shapes.png")
    proxy = Proxy(long_server.port, forces("Read", {"file_path": str(tmp_path / "shapes.png")}))
    done = run_claude(proxy, tmp_path, "What is in shapes.png?", "--allowedTools", "Read")
    assert done.returncode == 0, done.stdout
    assert not proxy.refused()
    assert [block["type"] for block in returned(proxy)] == ["image"]


def test_sdk(long_server, tmp_path):
    """The SDK around it, with a tool of the test's own. Claude Code does not declare such a tool at first: the model finds it
    by a search, whose result is a reference to it."""
    name, ran = "mcp__timers__set_timer", []

    @claude_agent_sdk.tool("set_timer", "Set a timer in minutes.", {"minutes": int})
    async def set_timer(arguments):
        ran.append(arguments)
        return {"content": [{"type": "text", "text": "The timer runs."}]}

    def change(path, body):
        what = answer_shortly(path, body)
        if not what or len(tool_results(body)) > 1:
            return what
        if tool_results(body):
            return pin_tool(body, name, {"minutes": 6})
        return pin_tool(body, "ToolSearch", {"query": "select:" + name, "max_results": 5})

    proxy = Proxy(long_server.port, change)

    async def ask():
        options = claude_agent_sdk.ClaudeAgentOptions(
            model="demo", cwd=str(tmp_path), env=environment_of(proxy, tmp_path), allowed_tools=[name],
            mcp_servers={"timers": claude_agent_sdk.create_sdk_mcp_server("timers", tools=[set_timer])})
        return [message async for message in claude_agent_sdk.query(prompt="Set a timer for 6 minutes.", options=options)]

    last = asyncio.run(ask())[-1]
    assert isinstance(last, claude_agent_sdk.ResultMessage) and not last.is_error, last
    assert returned(proxy) == [{"type": "tool_reference", "tool_name": name}]
    assert ran == [{"minutes": 6}]
    assert "The timer runs." in str(tool_results(proxy.asked("/v1/messages")[-1])[1]["content"])
    assert not proxy.refused()
