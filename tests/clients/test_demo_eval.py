"""The questions of demo_eval through the server, 16 at a time: the answers are those of `gemma4 run`, and the tool prompts come
back as tool calls."""
import concurrent.futures
import json
import re
import subprocess

import openai
import pytest
from conftest import BINARY, IMAGES, ROOT, data_url

AT_A_TIME = 16


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def ask_picture(client, row):
    return client.chat.completions.create(model="demo", temperature=0, max_tokens=100, messages=[{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": data_url(row["image"])}},
        {"type": "text", "text": row["question"]}]}]).choices[0].message.content


def run_picture(row):
    command = [BINARY, "run", "--model", str(ROOT / "models/demo"), "--image", str(IMAGES / row["image"]), "--prompt",
               row["question"], "--temperature", "0", "--max-new-tokens", "100", "--threads", "1"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.rstrip("\n")


def test_pictures_as_run_answers_them(client):
    rows = json.loads((IMAGES.parent / "demo_eval.json").read_text())["rows"]
    with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        served = list(pool.map(lambda row: ask_picture(client, row), rows))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        alone = list(pool.map(run_picture, rows))
    assert len(served) == 240
    different = [(row["image"], s, a) for row, s, a in zip(rows, served, alone) if s != a]
    assert not different
    equal = sum(s == row["reference_output"] for s, row in zip(served, rows))
    assert equal >= 0.99 * len(rows)


def declared_tools(prompt):
    """The tools that a rendered prompt declares. The demo's have one parameter each."""
    pattern = (r'<\|tool>declaration:(\w+){description:<\|"\|>(.*?)<\|"\|>,parameters:{properties:{(\w+):{description:<\|"\|>(.*?)'
               r'<\|"\|>,type:<\|"\|>(\w+)<\|"\|>}}')
    return [{"type": "function", "function": {"name": name, "description": about, "parameters": {
        "type": "object", "properties": {key: {"type": kind.lower(), "description": what}}, "required": [key]}}}
        for name, about, key, what, kind in re.findall(pattern, prompt)]


def as_request(prompt):
    turns = re.findall(r"<\|turn>(user|model)\n(.*?)<turn\|>", prompt, re.S)
    body = {"messages": [{"role": "user" if who == "user" else "assistant", "content": text} for who, text in turns],
            "chat_template_kwargs": {"enable_thinking": "<|think|>" in prompt}}
    if tools := declared_tools(prompt):
        body["tools"] = tools
    system = re.search(r"<\|turn>system\n(.*?)<turn\|>", prompt, re.S)
    text = re.sub(r"<\|tool>.*?<tool\|>|<\|think\|>", "", system[1], flags=re.S).strip() if system else ""
    if text:
        body["messages"].insert(0, {"role": "system", "content": text})
    return body


def ask_text(server, client, row):
    body = as_request(row["prompt"])
    tokens = server.post("/tokenize", body)["tokens"]
    kwargs = body.pop("chat_template_kwargs")
    message = client.chat.completions.create(model="demo", temperature=0, max_tokens=200, **body,
                                             extra_body={"chat_template_kwargs": kwargs}).choices[0].message
    return tokens, message


def test_text_and_tools(server, client):
    rows = json.loads((IMAGES.parent / "demo_text_eval.json").read_text())
    rows = rows if isinstance(rows, list) else rows["rows"]
    with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
        answers = list(pool.map(lambda row: ask_text(server, client, row), rows))
    calls = thoughts = 0
    for row, (tokens, message) in zip(rows, answers):
        assert tokens == row["prompt_ids"], row["prompt"]
        expected = row["reference_output"]
        if call := re.fullmatch(r'<\|tool_call>call:(\w+){(\w+):(.*)}<tool_call\|>', expected):
            value = call[3].replace('<|"|>', '"')
            assert message.tool_calls[0].function.name == call[1]
            assert json.loads(message.tool_calls[0].function.arguments) == {call[2]: json.loads(value)}
            assert not message.content
            calls += 1
        elif thought := re.fullmatch(r"<\|channel>thought\n(.*)\n<channel\|>(.*)", expected, re.S):
            assert (message.reasoning_content, message.content) == thought.groups()
            thoughts += 1
        else:
            assert message.content == expected
    assert (calls, thoughts) == (6, 3)
