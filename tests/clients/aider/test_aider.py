"""aider, unmodified. A toy writes no code: where a file shall change, the proxy gives the answer that changes it."""
import os
import pathlib
import subprocess
import sys

import pytest

import pages
from proxy import Proxy

PROGRAM = pathlib.Path(sys.executable).parent / "aider"


def shortly(path, body):
    body["max_tokens"] = 48
    return "at most 48 tokens"


def environment_of(proxy, folder):
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "OPENAI_API_BASE": proxy.url + "/v1", "OPENAI_API_KEY": "none",
            "AIDER_ANALYTICS": "false"}


def run_aider(proxy, folder, *options):
    (folder / "count.py").write_text("print(9)\n")
    command = [PROGRAM, "--model", "openai/demo", "--no-git", "--yes-always", "--no-check-update", "--no-detect-urls", *options,
               "--message", "Count from 9 to 10.", "count.py"]
    done = subprocess.run(command, cwd=folder, env=environment_of(proxy, folder), capture_output=True, text=True, timeout=300)
    print(done.stdout[-2000:], done.stderr[-1000:])
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_changes_a_file(long_server, tmp_path, stream):
    changed = "count.py\n```\nprint(9)\nprint(10)\n```\n"

    def change(path, body):
        body["structured_outputs"] = {"choice": [changed]}
        return "the answer is given"

    proxy = Proxy(long_server.port, change)
    printed = run_aider(proxy, tmp_path, stream, "--no-show-model-warnings")
    assert "Applied edit to count.py" in printed
    assert (tmp_path / "count.py").read_text() == "print(9)\nprint(10)\n"
    asked = proxy.asked("/v1/chat/completions")
    assert any("print(9)" in str(message["content"]) for message in asked[0]["messages"])
    assert bool(asked[0].get("stream")) == (stream == "--stream")
    assert not proxy.refused()


def test_page(long_server, tmp_path):
    proxy = Proxy(long_server.port, shortly)
    printed = pages.run(pages.shell(pages.code("aider.md", "sh", proxy.url)), tmp_path,
                        {**environment_of(proxy, tmp_path), "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"})
    assert "Tokens:" in printed and proxy.asked("/v1/chat/completions") and not proxy.refused()


def test_the_model_of_the_page_is_known(long_server, tmp_path):
    """With the page's file aider knows how long the context is, and has nothing to warn of."""
    (tmp_path / ".aider.model.metadata.json").write_text(pages.code("aider.md", "json"))
    proxy = Proxy(long_server.port, shortly)
    printed = run_aider(proxy, tmp_path)
    assert "Unknown context window" not in printed and "Tokens:" in printed
    assert not proxy.refused()


def test_a_context_that_is_full_is_said(server, tmp_path):
    """aider knows the error by LiteLLM's class, and says what to do."""
    (tmp_path / "long.txt").write_text("word " * 5000)
    printed = run_aider(Proxy(server.port), tmp_path, "--no-show-model-warnings", "--read", "long.txt")
    assert "exceeds the context window" in printed or "token limit" in printed, printed
