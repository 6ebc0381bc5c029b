"""Codex, the program in the wheel openai-codex-cli-bin, unmodified, against a variant of the demo model with a long context. Its
prompts have thousands of tokens of instructions: the proxy gives the answers, and forces calls with arguments that make sense."""
import os
import pathlib
import shutil
import subprocess

import codex_cli_bin
import pytest

import pages
from conftest import IMAGES
from proxy import Proxy, pin_tool

ANSWER = "The lamp is lit."
CODEX = pathlib.Path(codex_cli_bin.__file__).parent / "bin/codex"


class Codex:
    """One Codex with a home of its own, configured as the page says. `more`: settings; `name`: the provider's."""

    def __init__(self, server, folder, change, more="", name="gemma4"):
        self.proxy, self.folder, self.home = Proxy(server.port, change), folder, folder / "home"
        self.home.mkdir()
        config = pages.code("codex.md", "toml", self.proxy.url)
        assert 'name = "gemma4"' in config
        (self.home / "config.toml").write_text(more + "\n" + config.replace('name = "gemma4"', f'name = "{name}"'))

    def run(self, *arguments):
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "CODEX_HOME": str(self.home), "GEMMA4_KEY": "none"}
        done = subprocess.run([str(CODEX), "exec", *arguments, "--skip-git-repo-check",
                               "--dangerously-bypass-approvals-and-sandbox"],
                              cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=550)
        print(done.stdout[-2000:], done.stderr[-2000:])
        assert done.returncode == 0
        assert not self.proxy.refused()
        return done

    def items(self, kind):
        """The items of this type in all inputs."""
        return [item for body in self.proxy.asked("/v1/responses") for item in body["input"] if item["type"] == kind]


def answer_shortly(path, body):
    if path != "/v1/responses":
        return None
    body["max_output_tokens"] = 100
    body["tool_choice"] = "none"  # where it chooses, the toy calls anything
    body["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": {"const": ANSWER}}}
    return f"the answer {ANSWER}"


def forces(tool, arguments):
    """Changes of a proxy: a call of the tool is forced, until its result comes back."""
    def change(path, body):
        what = answer_shortly(path, body)
        if what and not any(item["type"] == "function_call_output" for item in body["input"]):
            return pin_tool(body, tool, arguments)
        return what

    return change


def test_page(long_server, tmp_path):
    codex = Codex(long_server, tmp_path, answer_shortly)
    assert codex.run("Count from 9 to 17.").stdout.strip() == f'"{ANSWER}"'
    assert any(body.get("tools") for body in codex.proxy.asked("/v1/responses"))


def test_tool(long_server, tmp_path):
    """A command runs, and what it printed comes back."""
    (tmp_path / "note.txt").write_text("the lamp is green\n")
    codex = Codex(long_server, tmp_path, forces("exec_command", {"cmd": "cat note.txt > copy.txt && cat copy.txt"}))
    codex.run("What does the note say?")
    assert (tmp_path / "copy.txt").read_text() == "the lamp is green\n"
    assert "the lamp is green" in str(codex.items("function_call_output")[0]["output"])


def test_picture(long_server, tmp_path):
    shutil.copy(IMAGES / "002.png", tmp_path / "shapes.png")
    codex = Codex(long_server, tmp_path, answer_shortly)
    codex.run("What is in this picture?", "--image", "shapes.png")
    assert "input_image" in str(codex.items("message"))


@pytest.mark.parametrize("name", ["gemma4", "OpenAI"])
def test_a_full_context_is_compacted(long_server, tmp_path, name):
    """Codex writes the summary itself, or asks the server for one where the provider has OpenAI's name."""
    codex = Codex(long_server, tmp_path, answer_shortly, "model_auto_compact_token_limit = 1000", name)
    codex.run("Count from 9 to 17.")
    done = codex.run("resume", "--last", "Count from 3 to 5.")
    assert "context compacted" in done.stderr
    if name == "OpenAI":
        assert codex.items("compaction_trigger")
        last = codex.proxy.asked("/v1/responses")[-1]["input"]
        assert [item["type"] for item in last].count("compaction") == 1
    else:
        assert "Count from 9 to 17." in str(codex.proxy.asked("/v1/responses")[-1]["input"])
