"""Command-line and generation libraries: llm, outlines, guidance."""
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Literal

import anthropic
import guidance
import ollama
import outlines
import pytest
from guidance.models import OpenAI as GuidanceOpenAI
from guidance.models.experimental import SglangModel, VLLMModel
from openai import OpenAI
from outlines.types import CFG, Regex
from pydantic import BaseModel

import pages
from conftest import IMAGES
from proxy import Proxy, cold

COUNT, COUNTED = "Count from 9 to 17.", "9, 10, 11, 12, 13, 14, 15, 16, 17."


class Timer(BaseModel):
    minutes: int
    unit: Literal["minutes", "hours"]


# llm

@pytest.fixture()
def llm(long_server, tmp_path):
    """The model of the page, `gemma4`, and the program."""
    proxy = Proxy(long_server.port, cold)
    (tmp_path / "extra-openai-models.yaml").write_text(pages.code("llm.md", "yaml", proxy.url))
    program = pathlib.Path(sys.executable).parent / "llm"
    environment = {"LLM_USER_PATH": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def run(*arguments, **options):
        done = subprocess.run([program, *arguments], capture_output=True, timeout=300, text=True,
                              env={**os.environ, **environment}, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run.proxy, run.environment = proxy, environment
    return run


def test_llm_page(llm, tmp_path):
    printed = pages.run(pages.shell(pages.code("llm.md", "sh")), tmp_path, llm.environment)
    assert printed.startswith(COUNTED + "\n") and "pink" in printed  # the picture comes behind the question here
    asked = llm.proxy.asked("/v1/chat/completions")
    assert len(asked) == 6 and not llm.proxy.refused()
    results = [message for message in asked[4]["messages"] if message["role"] == "tool"]
    assert [message["content"] for message in results] == ["started"]  # the function ran, and its result came back
    assert len(asked[5]["messages"]) > len(asked[4]["messages"])       # -c goes on


def test_llm(llm):
    llm("keys", "set", "openai", "--value", "none")
    ask = ["-m", "gemma4", "-o", "temperature", "0"]
    assert llm(*ask, "--no-stream", COUNT) == COUNTED
    assert llm(*ask, "-", input=COUNT) == COUNTED
    assert llm(*ask, "What is at the left?", "-a", "-", stdin=(IMAGES / "002.png").open("rb")).count("pink")
    assert isinstance(json.loads(llm(*ask, "--schema", "minutes int", "Set a timer for 6 minutes."))["minutes"], int)
    assert not llm.proxy.refused()


# outlines

def test_outlines(long_server):
    client = OpenAI(base_url=long_server.url + "/v1", api_key="none")
    model = outlines.from_openai(client, "demo")
    assert Timer.model_validate_json(model("Set a timer for 6 minutes.", Timer, temperature=0, max_tokens=200))
    claude = outlines.from_anthropic(anthropic.Anthropic(base_url=long_server.url, api_key="none"), "demo")
    assert claude(COUNT, max_tokens=100)
    local = outlines.from_ollama(ollama.Client(host=long_server.url), "demo")
    assert Timer.model_validate_json(local("Set a timer for 6 minutes.", Timer))


ARITHMETIC = """
?start: sum
?sum: product | sum "+" product -> add
?product: atom | product "*" atom -> mul
?atom: NUMBER -> number | "(" sum ")"
%import common.INT -> NUMBER
"""


def test_outlines_of_other_servers(long_server):
    """What it sends to vLLM and to SGLang."""
    client = OpenAI(base_url=long_server.url + "/v1", api_key="none")
    for model in (outlines.from_vllm(client, "demo"), outlines.from_sglang(client, "demo")):
        def ask(kind):
            return model("Set a timer for 6 minutes.", kind, temperature=0, max_tokens=200)

        assert isinstance(Timer.model_validate_json(ask(Timer)).minutes, int)
        assert ask(Literal["yes", "no"]) in ("yes", "no")
        assert re.fullmatch(r"[a-z]{3}-[0-9]{2}", ask(Regex("[a-z]{3}-[0-9]{2}")))
        pieces = model.stream("Set a timer for 6 minutes.", Timer, temperature=0, max_tokens=200)
        assert Timer.model_validate_json("".join(pieces))
        assert re.fullmatch("a[0-9]{3}", ask(CFG('root ::= "a" [0-9]{3}')))
    text = outlines.from_vllm(client, "demo")("What is 16 + 3?", CFG(ARITHMETIC), temperature=0, max_tokens=200)
    assert re.fullmatch("[0-9+*()]+", text)


# guidance

def with_guidance(model, body):
    with guidance.user():
        model += COUNT
    with guidance.assistant():
        model += body
    return model["answer"]


@pytest.mark.parametrize("kind", [GuidanceOpenAI, VLLMModel, SglangModel])
def test_guidance(long_server, kind):
    proxy = Proxy(long_server.port, cold)
    model = kind("demo", base_url=proxy.url + "/v1", api_key="none", echo=False)
    if kind is VLLMModel:  # all that it asks for is a grammar; it sends no limit of tokens
        assert with_guidance(model, guidance.gen("answer")) == COUNTED
        assert with_guidance(model, guidance.select(["red", "blue"], name="answer")) in ("red", "blue")
        assert with_guidance(model, guidance.gen("answer", regex="[0-9]{2} or [0-9]"))[2:6] == " or "
    else:
        assert with_guidance(model, guidance.gen("answer", temperature=0, max_tokens=60)) == COUNTED
        answer = with_guidance(model, guidance.json("answer", schema=Timer, temperature=0, max_tokens=300))
        assert isinstance(Timer.model_validate_json(answer), Timer)
    if kind is SglangModel:
        assert re.fullmatch("[0-9]{2}", with_guidance(model, guidance.gen("answer", regex="[0-9]{2}")))
    assert not proxy.refused()
