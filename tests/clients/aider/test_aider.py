"""aider, unmodified. A toy writes no code: what is asserted is that it is asked, and answers, and that aider ends well."""
import os
import pathlib
import subprocess
import sys

import pytest

from proxy import Proxy


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_aider(long_server, tmp_path, stream):
    def change(path, body):
        body["max_tokens"] = 48
        return "at most 48 tokens"

    proxy = Proxy(long_server.port, change)
    (tmp_path / "count.py").write_text("print(9)\n")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OPENAI_API_BASE": proxy.url + "/v1",
                   "OPENAI_API_KEY": "none", "AIDER_ANALYTICS": "false"}
    command = [pathlib.Path(sys.executable).parent / "aider", "--model", "openai/demo", "--no-git", "--yes-always", stream,
               "--no-show-model-warnings", "--no-check-update", "--no-detect-urls", "--message", "Count from 9 to 17.",
               "count.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    print(done.stdout[-2000:], done.stderr[-1000:])
    assert done.returncode == 0
    assert "Tokens:" in done.stdout
    asked = proxy.asked("/v1/chat/completions")
    assert asked and any("print(9)" in str(message["content"]) for message in asked[0]["messages"])
    assert bool(asked[0].get("stream")) == (stream == "--stream")
    assert not proxy.refused()
