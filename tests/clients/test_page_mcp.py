"""Tools of MCP servers in the page: a real server (the SDK's, over Streamable HTTP), which the demo model calls."""
import contextlib
import json
import socket
import subprocess
import threading
import time

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from browser import LATE, answered, browser, notice, say, set_cold, settings, shared_browser, stored  # noqa: F401
from conftest import BINARY, ROOT, Served
from mcp.server.mcpserver import MCPServer
from playwright.sync_api import expect
from starlette.middleware.cors import CORSMiddleware
from test_page_access import SMALL

TIMER = "Set a timer for 6 minutes."
HOSTILE = "<img src=x onerror=alert(1)>"


class Tools:
    """An MCP server with the tool `set_timer`. `answer` is what it returns: a text, an exception, or seconds to wait."""

    def __init__(self, origins=("*",), json_response=False):
        self.calls, self.requests, self.answer = [], [], "The timer runs."
        server = MCPServer("Kitchen", version="1")

        @server.tool(description="Set a timer in minutes.")
        async def set_timer(minutes: int) -> str:
            self.calls.append(minutes)
            if isinstance(self.answer, Exception):
                raise self.answer
            if isinstance(self.answer, (int, float)):
                import anyio
                await anyio.sleep(self.answer)
                return "late"
            return self.answer

        self.server, self.origins, self.json_response = server, list(origins), json_response
        self.port = socket.create_server(("127.0.0.1", 0)).getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.start()

    def start(self):
        app = self.server.streamable_http_app(json_response=self.json_response)
        cors = CORSMiddleware(app, allow_origins=self.origins, allow_methods=["*"], allow_headers=["*"],
                              expose_headers=["Mcp-Session-Id"])

        async def recorded(scope, receive, send):
            if scope["type"] == "http" and scope["method"] == "POST":
                self.requests.append({k.decode().lower(): v.decode() for k, v in scope["headers"]})
            await cors(scope, receive, send)
        self.running = uvicorn.Server(uvicorn.Config(recorded, host="127.0.0.1", port=self.port, log_level="error"))
        self.thread = threading.Thread(target=self.running.run, daemon=True)
        self.thread.start()
        while not self.running.started:
            time.sleep(0.02)

    def stop(self):
        self.running.force_exit = self.running.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def places():
    """The kitchen, one that answers in plain JSON, one whose CORS forbids the page; and a server that lists them."""
    kitchen, plain, closed = Tools(), Tools(json_response=True), Tools(origins=["http://elsewhere.example"])
    served = Served("--mcp", kitchen.url, "--mcp", plain.url, "--mcp", closed.url)
    yield served, kitchen, plain, closed
    assert served.stop() == 0
    for tools in (kitchen, plain, closed):
        tools.stop()


@contextlib.contextmanager
def opened(places, **options):
    served, *all_tools = places
    for tools in all_tools:
        tools.calls.clear()
        tools.answer = "The timer runs."
    context = shared_browser().new_context(**options)
    context.set_default_timeout(LATE)
    page = context.new_page()
    page.dialogs = []
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(served.url)
    expect(page.locator("#model")).to_have_text("demo")
    yield page
    assert page.dialogs == []
    context.close()


@contextlib.contextmanager
def servers(page):
    page.get_by_role("button", name="This conversation", exact=True).click()
    yield page.locator("#c-servers .server")
    page.locator("#conversation").get_by_role("button", name="Done").click()


def use(page, at=0):
    set_cold(page)
    with servers(page) as all_servers:
        box = all_servers.nth(at).get_by_role("checkbox")
        expect(box).not_to_be_checked()
        expect(all_servers.nth(at).locator("summary")).to_have_text("1 tool")
        box.check()


def called(page):
    say(page, TIMER)
    call = page.locator(".message.assistant .tool").last
    expect(call.get_by_role("button", name="Run", exact=True)).to_be_visible(timeout=LATE)
    return call


def finished(page, answers=2):
    expect(page.locator(".message.assistant")).to_have_count(answers, timeout=LATE)
    return answered(page)


def scripted(page, calls, also=()):
    """The model calls set_timer `calls` times, one answer after another, then says "Done."; gives the requests. `also`: names of
    tools that each of these answers calls, too."""
    bodies = []

    def answer(route):
        bodies.append(route.request.post_data_json)
        delta = {"content": "Done."}
        if len(bodies) <= calls:
            function = {"name": "set_timer", "arguments": json.dumps({"minutes": len(bodies)})}
            others = [{"name": name, "arguments": "{}"} for name in also]
            delta = {"tool_calls": [{"index": i, "id": f"c{len(bodies)}_{i}", "function": each}
                                    for i, each in enumerate([function, *others])]}
        reason = "tool_calls" if "tool_calls" in delta else "stop"
        chunks = [{"choices": [{"delta": delta}]}, {"choices": [{"delta": {}, "finish_reason": reason}]},
                  {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 5}}]
        route.fulfill(content_type="text/event-stream", body="".join(f"data: {json.dumps(c)}\n\n" for c in chunks))
    page.route("**/v1/chat/completions", answer)
    return bodies


@pytest.mark.parametrize("at", [0, 1], ids=["event stream", "json"])
def test_the_model_calls_a_tool_and_goes_on(places, at):
    tools = places[1 + at]
    tools.requests.clear()
    with opened(places) as page:
        use(page, at)
        call = called(page)
        expect(call.locator("pre")).to_contain_text('"minutes": 6')
        assert tools.calls == []
        with page.expect_request("**/v1/chat/completions") as request:
            call.get_by_role("button", name="Run", exact=True).click()
        finished(page)
        assert tools.calls == [6]
        entry, result = request.value.post_data_json["messages"][-2:]
        assert entry["tool_calls"][0]["function"]["name"] == "set_timer"
        assert result["role"] == "tool" and result["content"] == "The timer runs."
        expect(page.locator(".tool .result")).to_have_text("The timer runs.")
        assert "mcp-session-id" not in tools.requests[0]
        assert all(each["mcp-protocol-version"] == "2025-06-18" and each["mcp-session-id"]
                   for each in tools.requests[1:])
        page.reload()
        expect(page.locator(".tool .result")).to_have_text("The timer runs.")
        kept = stored(page)[0]
        assert kept["servers"] == [tools.url] and kept["messages"][1]["calls"][0]["server"] == tools.url


def test_a_call_that_is_refused_or_fails_is_told_to_the_model(places):
    kitchen = places[1]
    with opened(places) as page:
        use(page)
        with page.expect_request(lambda request: "The user did not allow this call." in (request.post_data or "")):
            called(page).get_by_role("button", name="Don't run").click()
        finished(page)
        assert kitchen.calls == []
        kitchen.answer = ValueError("no timer is free")
        with page.expect_request(lambda request: "The tool failed: " in (request.post_data or "")):
            called(page).get_by_role("button", name="Run", exact=True).click()
        finished(page, 4)
        assert kitchen.calls == [6]
        expect(page.locator(".tool .result").last).to_contain_text("The tool failed: ")


def test_always_runs_unasked_and_at_most_eight_rounds(places):
    kitchen = places[1]
    with opened(places) as page:
        use(page)
        bodies = scripted(page, 99)
        say(page, TIMER)
        page.get_by_role("button", name="Always in this conversation").click()
        expect(page.locator(".message .failed")).to_contain_text("8 rounds in a row")
        assert kitchen.calls == list(range(1, 9)) and len(bodies) == 9
        page.unroute("**/v1/chat/completions")
        scripted(page, 1)
        say(page, TIMER)  # a message of the user begins anew, and what was allowed still is
        expect(page.locator(".message.assistant .body").last).to_have_text("Done.")
        assert kitchen.calls == [*range(1, 9), 1]
        page.get_by_role("button", name="New chat").click()
        use(page)
        page.unroute("**/v1/chat/completions")
        scripted(page, 1)
        say(page, TIMER)  # in another conversation nothing is allowed
        expect(page.get_by_role("button", name="Run", exact=True)).to_be_visible()
        assert len(kitchen.calls) == 9


def test_a_running_call_can_be_stopped(places):
    kitchen = places[1]
    kitchen.answer = 60
    with opened(places) as page:
        kitchen.answer = 60
        use(page)
        scripted(page, 1)
        called(page).get_by_role("button", name="Run", exact=True).click()
        expect(page.locator(".tool .result")).to_have_text("Running…")
        say(page, "And then?")
        expect(page.locator(".queued")).to_have_count(1)
        page.get_by_role("button", name="Stop the answer").click()
        expect(page.locator(".tool-choice")).to_contain_text("It was stopped.")
        expect(page.locator(".queued")).to_have_count(1)
        kitchen.answer = "The timer runs."
        page.reload()
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator(".tool .result")).to_have_text("The timer runs.")
        expect(page.locator(".message.assistant .body").nth(1)).to_have_text("Done.")


def test_tools_of_the_settings_stay_by_hand(places):
    """One of them has the name of a server's tool, which gets another."""
    kitchen = places[1]
    hand = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
            for name in ("weigh", "set_timer")]
    with opened(places) as page:
        use(page)
        with settings(page):
            page.locator("#s-tools").fill(json.dumps(hand))
        bodies = scripted(page, 1, ["weigh", "set_timer_2"])
        say(page, TIMER)
        expect(page.get_by_label("What it returned")).to_have_count(2)  # set_timer and weigh
        assert [each["function"]["name"] for each in bodies[0]["tools"]] == ["weigh", "set_timer", "set_timer_2"]
        expect(page.locator(".tool-choice")).to_have_count(1)
        expect(page.get_by_role("button", name="Return to the model")).to_have_count(0)
        page.get_by_role("button", name="Don't run").click()
        page.get_by_label("What it returned").first.fill("by hand")
        page.get_by_label("What it returned").last.fill("3 kg")
        page.get_by_role("button", name="Return to the model").click()
        finished(page)
        assert kitchen.calls == []
        results = [each["content"] for each in bodies[1]["messages"] if each["role"] == "tool"]
        assert results == ["by hand", "3 kg", "The user did not allow this call."]


def test_a_message_can_be_sent_in_place_of_a_decision(places):
    with opened(places) as page:
        use(page)
        bodies = scripted(page, 1)
        called(page)
        say(page, "Never mind.")
        expect(page.locator(".message.assistant .body").last).to_have_text("Done.")
        assert [each["role"] for each in bodies[1]["messages"]] == ["user", "user"]
        assert places[1].calls == []


def test_results_are_text_and_bounded(places):
    kitchen = places[1]
    with opened(places) as page:
        kitchen.answer = HOSTILE + "\u00e4" * 70000
        use(page)
        bodies = scripted(page, 1)
        called(page).get_by_role("button", name="Run", exact=True).click()
        finished(page)
        expect(page.locator(".tool .result")).to_contain_text(HOSTILE)
        assert page.locator(".tool img").count() == 0
        sent = bodies[-1]["messages"][-1]["content"]
        assert 65536 < len(sent.encode()) < 65536 + 100 and "the first 64 KiB of 137 are kept" in sent


def test_an_answer_without_end_is_not_read(places):
    with opened(places) as page:
        places[1].answer = "x" * (17 << 20)
        use(page)
        bodies = scripted(page, 1)
        called(page).get_by_role("button", name="Run", exact=True).click()
        finished(page)
        assert bodies[-1]["messages"][-1]["content"] == "The call failed: its answer is longer than 16 MiB"


def test_a_session_that_has_ended_is_begun_anew(places):
    kitchen = places[1]
    with opened(places) as page:
        use(page)
        scripted(page, 1)
        call = called(page)
        page.evaluate("""(url) => {
          const real = window.fetch;
          window.fetch = (address, options) => {
            if (address !== url || !options.headers["Mcp-Session-Id"] || window.once) return real(address, options);
            window.once = true;
            const headers = {...options.headers, "Mcp-Session-Id": "0".repeat(32)};
            return real(address, {...options, headers});  // the server knows no such session
          };
        }""", kitchen.url)
        call.get_by_role("button", name="Run", exact=True).click()
        finished(page)
        assert page.evaluate("window.once") and kitchen.calls == [1]
        expect(page.locator(".tool .result")).to_have_text("The timer runs.")


def test_a_server_that_cannot_be_reached_is_said(places):
    with opened(places) as page:
        with servers(page) as all_servers:
            said = all_servers.nth(2).get_by_role("alert")
            expect(said).to_contain_text(f"CORS must allow {places[0].url}")
            all_servers.nth(2).get_by_role("checkbox").check()
        scripted(page, 0)
        say(page, TIMER)
        expect(notice(page, "The model answers without its tools")).to_be_visible()
        expect(page.locator(".message.assistant .body")).to_have_text("Done.")


def test_an_export_has_the_calls_and_an_import_no_permission(places, tmp_path):
    with opened(places) as page:
        use(page)
        scripted(page, 1)
        say(page, TIMER)
        page.get_by_role("button", name="Always in this conversation").click()
        finished(page)
        assert stored(page)[0]["allowed"] == [places[1].url + " set_timer"]
        for button, name in (("Export as JSON", "a.json"), ("Export as Markdown", "a.md")):
            with servers(page):
                with page.expect_download() as download:
                    page.get_by_role("button", name=button).click()
                download.value.save_as(tmp_path / name)
    for name in ("a.json", "a.md"):
        with opened(places) as page:
            page.locator("#import-files").set_input_files(tmp_path / name)
            page.locator("#conversations .open").click()
            expect(page.locator(".tool .result")).to_have_text("The timer runs.")
            kept = stored(page)[0]
            assert "allowed" not in kept and kept["messages"][1]["calls"][0]["server"] == places[1].url
            assert name == "a.md" or kept["servers"] == [places[1].url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_fingers_hit(places, scheme):
    with opened(places, color_scheme=scheme, reduced_motion="reduce", has_touch=True, is_mobile=True,
                viewport={"width": 375, "height": 700}) as page:
        scripted(page, 1)
        page.get_by_role("button", name="This conversation", exact=True).click()
        for at in (0, 2):
            expect(page.locator("#c-servers .server").nth(at)).to_contain_text(["1 tool", "", "CORS"][at])
        page.locator("#c-servers summary").first.click()
        for step in ("dialog", "call"):
            page.wait_for_timeout(300)
            found = Axe().run(page).response["violations"]
            assert not found, json.dumps([(v["id"], [n["html"] for n in v["nodes"]]) for v in found], indent=1)
            assert page.evaluate(SMALL) == [], step
            if step == "dialog":
                page.locator("#c-servers").get_by_role("checkbox").first.check()
                page.get_by_role("button", name="Done").click()
                called(page)


def test_keyboard_alone(places):
    with opened(places) as page:
        use(page)
        scripted(page, 1)
        call = called(page)
        expect(page.locator("#status")).to_have_text("The model wants to call set_timer. Run it, or not?")
        call.get_by_role("button", name="Run", exact=True).focus()
        page.keyboard.press("Enter")
        finished(page)
        expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_without_servers_the_dialog_says_nothing_of_them(browser, server):
    page = browser.new_page()
    page.goto(server.url)
    expect(page.locator("#model")).to_have_text("demo")
    page.get_by_role("button", name="This conversation", exact=True).click()
    expect(page.locator("#c-mcp")).not_to_be_visible()
    page.close()


@pytest.mark.parametrize("url", ["ftp://tools.example", "https://me:pw@tools.example", "tools.example", "http://[::1]/mcp"])
def test_a_url_of_no_mcp_server_is_refused(url):
    done = subprocess.run([BINARY, "serve", str(ROOT / "no-such-model"), "--mcp", url], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "--mcp is the http or https URL of an MCP server" in done.stderr and done.stderr.count("\n") == 1
