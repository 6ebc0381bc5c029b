"""Command-line and generation libraries: llm, outlines, guidance."""
import json
import os
import pathlib
import subprocess
import sys
from typing import Literal

import outlines
import pytest
from openai import OpenAI
from pydantic import BaseModel

from conftest import IMAGES

COUNT, COUNTED = "Count from 9 to 17.", "9, 10, 11, 12, 13, 14, 15, 16, 17."


class Timer(BaseModel):
    minutes: int
    unit: Literal["minutes", "hours"]


@pytest.fixture()
def llm(long_server, tmp_path):
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: demo\n  model_name: demo\n  api_base: {long_server.url}/v1\n  vision: true\n  supports_schema: true\n"
        "  supports_tools: true\n")
    program = pathlib.Path(sys.executable).parent / "llm"

    def run(*arguments, stdin=None):
        done = subprocess.run([program, *arguments], input=stdin, capture_output=True, timeout=300,
                              env={**os.environ, "LLM_USER_PATH": str(tmp_path)})
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    run("keys", "set", "openai", "--value", "none")
    return run


def test_llm(llm):
    ask = ["-m", "demo", "-o", "temperature", "0"]
    assert llm(*ask, COUNT) == COUNTED
    assert llm(*ask, "--no-stream", COUNT) == COUNTED
    assert llm(*ask, "What is at the left?", "-a", str(IMAGES / "002.png"))
    assert isinstance(json.loads(llm(*ask, "--schema", "minutes int", "Set a timer for 6 minutes."))["minutes"], int)
    functions = 'def set_timer(minutes: int) -> str:\n  "Set a timer in minutes."\n  return "started"\n'
    assert llm(*ask, "--functions", functions, "Set a timer for 6 minutes.") is not None
    assert llm(*ask, "-c", "What is 16 + 3?")


def test_outlines(long_server):
    client = OpenAI(base_url=long_server.url + "/v1", api_key="none")
    model = outlines.from_openai(client, "demo")
    assert Timer.model_validate_json(model("Set a timer for 6 minutes.", Timer, temperature=0, max_tokens=200))


def test_guidance(long_server):
    from guidance import assistant, gen, user
    from guidance.models import OpenAI as GuidanceOpenAI

    model = GuidanceOpenAI("demo", base_url=long_server.url + "/v1", api_key="none")
    with user():
        model += COUNT
    with assistant():
        model += gen("answer", temperature=0, max_tokens=60)
    assert model["answer"] == COUNTED
