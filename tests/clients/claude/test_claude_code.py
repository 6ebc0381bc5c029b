"""Claude Code, the program in the wheel of claude-agent-sdk, unmodified, against a variant of the demo model with a long
context. Its prompts have thousands of tokens of instructions: the proxy forces calls with arguments that make sense."""
import os
import pathlib
import subprocess

import claude_agent_sdk
import pytest

from proxy import Proxy, pin_tool

CLAUDE = pathlib.Path(claude_agent_sdk.__file__).parent / "_bundled/claude"


def run_claude(proxy, folder, prompt, *options):
    home = folder / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "ANTHROPIC_BASE_URL": proxy.url,
                   "ANTHROPIC_AUTH_TOKEN": "none", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                   "DISABLE_AUTOUPDATER": "1"}
    command = [str(CLAUDE), "-p", prompt, "--model", "demo", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=550)
    print(done.stdout[-2000:], done.stderr[-2000:])
    return done


def short(body):
    body["max_tokens"] = min(body.get("max_tokens", 48), 48)


def tool_results(body):
    return [block for message in body["messages"] if isinstance(message["content"], list) for block in message["content"]
            if block.get("type") == "tool_result"]


def test_answers(long_server, tmp_path):
    proxy = Proxy(long_server.port, lambda path, body: short(body) or "at most 48 tokens" if "messages" in body else None)
    done = run_claude(proxy, tmp_path, "Count from 9 to 17.")
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip() and "API Error" not in done.stdout
    assert not proxy.refused()
    assert any(body.get("tools") for body in proxy.asked("/v1/messages"))


@pytest.mark.parametrize("tool, arguments, result", [
    ("Read", {"file_path": "FOLDER/note.txt"}, "the lamp is green"),
    ("Bash", {"command": "cat note.txt > copy.txt && echo copied", "description": "Copies the note"}, "copied"),
])
def test_tool(long_server, tmp_path, tool, arguments, result):
    """The tool runs, and its result comes back."""
    (tmp_path / "note.txt").write_text("the lamp is green\n")
    arguments = {name: value.replace("FOLDER", str(tmp_path)) for name, value in arguments.items()}

    def change(path, body):
        if not path.startswith("/v1/messages") or "count_tokens" in path:
            return None
        short(body)
        names = [one.get("name") for one in body.get("tools", [])]
        if tool not in names or tool_results(body):
            return "at most 48 tokens"
        body["max_tokens"] = 400
        return pin_tool(body, tool, arguments)

    proxy = Proxy(long_server.port, change)
    done = run_claude(proxy, tmp_path, "What does the note say?", "--allowedTools", "Read", "Bash")
    assert done.returncode == 0, done.stdout
    assert not proxy.refused()
    results = [one for body in proxy.asked("/v1/messages") for one in tool_results(body)]
    assert results and result in str(results[0]["content"]), results
    if tool == "Bash":
        assert (tmp_path / "copy.txt").read_text() == "the lamp is green\n"
