"""Open WebUI, its server and its page with their default settings, against a variant of the demo model with a long context.
The page's first message carries dozens of tools, thousands of tokens: the proxy forces a call of one, and what is asserted is
that the tool ran, its result came back, and an answer is shown. The model for embeddings that Open WebUI would fetch is left
out."""
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from playwright.sync_api import expect, sync_playwright

import pages
from conftest import IMAGES, data_url
from proxy import Proxy, pin_tool

TOOL = "get_current_timestamp"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ANSWER = "The lamp is lit."
COUNT, COUNTED = "Count from 9 to 17.", "9, 10, 11, 12, 13, 14, 15, 16, 17."


def call(url, body=None, token=None):
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


@pytest.fixture(scope="session")
def webui(long_server, tmp_path_factory):
    def change(path, body):
        if path != "/v1/chat/completions" or body.get("max_tokens"):
            return None
        body["max_tokens"] = 64
        if body.get("tools") and body["messages"][-1]["role"] == "user":
            return pin_tool(body, TOOL, {})
        if body.get("tools"):
            body["tool_choice"], body["structured_outputs"] = "none", {"choice": [ANSWER]}
            return "the answer is given"
        return "at most 64 tokens"

    proxy = Proxy(long_server.port, change)
    folder = tmp_path_factory.mktemp("open_webui")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder),
                   "DATA_DIR": str(folder / "data"), "WEBUI_SECRET_KEY": "x", "WEBUI_AUTH": "False", "HF_HUB_OFFLINE": "1",
                   "DO_NOT_TRACK": "true", "ANONYMIZED_TELEMETRY": "false"}
    command = pages.code("open-webui.md", "sh", proxy.url).strip() + f" --host 127.0.0.1 --port {port}"
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(["bash", "-c", "exec env " + command], env=environment, cwd=folder, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        for _ in range(400):
            time.sleep(1)
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                if call(url + "/health")["status"]:
                    break
            except OSError:
                pass
        token = call(url + "/api/v1/auths/signin", {"email": "", "password": ""})["token"]
        yield url, token, proxy
        process.terminate()
        process.wait(60)


def test_server(webui):
    url, token, proxy = webui
    assert "demo" in [model["id"] for model in call(url + "/api/models", token=token)["data"]]
    ask = {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": COUNT}]}
    assert call(url + "/api/chat/completions", ask, token)["choices"][0]["message"]["content"] == COUNTED
    picture = {"type": "image_url", "image_url": {"url": data_url("002.png")}}
    ask["messages"][0]["content"] = [picture, {"type": "text", "text": "What is at the left?"}]
    assert "pink" in call(url + "/api/chat/completions", ask, token)["choices"][0]["message"]["content"]
    assert not proxy.refused()


@pytest.fixture
def page(webui):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(webui[0], timeout=120_000)
        page.box = page.locator("#chat-input")
        expect(page.box).to_be_visible(timeout=120_000)
        if page.get_by_text("Okay, Let's Go!").count():
            page.get_by_text("Okay, Let's Go!").click()
        yield page
        browser.close()


def test_page(webui, page):
    _, _, proxy = webui
    before = len(proxy.asked("/v1/chat/completions"))
    page.box.click()
    page.box.type(COUNT)
    page.keyboard.press("Enter")
    answer = page.locator(".chat-assistant").first
    expect(answer).to_contain_text(f"View Result from {TOOL}", timeout=300_000)
    expect(answer).to_contain_text(ANSWER, timeout=120_000)
    asked = [body for body in proxy.asked("/v1/chat/completions")[before:] if body.get("tools")]
    assert len(asked) >= 2 and all(body["stream"] is True for body in asked)
    assert [message["role"] for message in asked[1]["messages"]][-2:] == ["assistant", "tool"]
    assert not proxy.refused()


def test_page_with_a_picture(webui, page):
    _, _, proxy = webui
    before = len(proxy.asked("/v1/chat/completions"))
    page.locator("input[type=file]").first.set_input_files(IMAGES / "002.png")
    page.box.click()
    page.box.type("What is at the left?")
    expect(page.locator("#message-input-container img").first).to_be_visible(timeout=120_000)
    page.keyboard.press("Enter")
    expect(page.locator(".chat-assistant").first).to_contain_text(f"View Result from {TOOL}", timeout=300_000)
    expect(page.locator(".chat-assistant").first).to_contain_text(ANSWER, timeout=120_000)
    asked = [body for body in proxy.asked("/v1/chat/completions")[before:] if body.get("tools")]
    parts = [part for message in asked[0]["messages"] if isinstance(message["content"], list) for part in message["content"]]
    pictures = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert [picture.split(",")[0] for picture in pictures] == ["data:image/png;base64"]
    assert not proxy.refused()
