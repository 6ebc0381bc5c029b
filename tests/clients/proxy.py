"""A proxy between a client and `gemma4 serve`, for tests.

A toy model cannot act on thousands of tokens of instructions. So a test may add to requests what makes the answer usable: a
`tool_choice`, a schema, the answer, a limit. Everything else passes unchanged, both ways. What was changed is printed, and all requests
are kept for the test to look at. With a `pause` the events of streams come one by one, so many seconds apart, for what happens in the
middle of an answer.
"""
import http.client
import http.server
import json
import re
import threading
import time

# The page's origin is the proxy, which the server would not know.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "origin"}


class Proxy:
    """`change(path, body)` may change the body in place, and returns what it changed, in words, or None."""

    def __init__(self, port, change=None, pause=0):
        self.requests, self.answers, self.changes = [], [], []
        self.pause = pause
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def forward(self):
                try:
                    self.pass_on()
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client has left

            def pass_on(self):
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = None
                if data:
                    body = json.loads(data)
                    proxy.requests.append((self.path, json.loads(data)))
                    what = change(self.path, body) if change else None
                    if what:
                        proxy.changes.append(what)
                        print(f"proxy: {self.command} {self.path}: {what}")
                    data = json.dumps(body).encode()
                headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
                upstream.request(self.command, self.path, data or None, headers)
                answer = upstream.getresponse()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                whole = b""
                while piece := answer.read1(65536):
                    whole += piece
                    slow = self.command == "POST" and proxy.pause
                    for part in re.findall(rb".*?\n\n|.+", piece, re.S) if slow else [piece]:
                        time.sleep(proxy.pause if slow else 0)
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                        self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
                proxy.answers.append((self.path, answer.status, whole.decode(errors="replace")))
                if answer.status >= 400:
                    print(f"proxy: {self.command} {self.path}: {answer.status} {whole[:500]!r}")
                upstream.close()

            do_GET = do_POST = do_HEAD = forward

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def asked(self, path):
        return [body for at, body in self.requests if at.split("?")[0] == path]

    def refused(self):
        return [answer for answer in self.answers if answer[1] >= 400]

    def stop(self):
        self.server.shutdown()


def pin_tool(body, name, arguments):
    """Leaves the tool `name` no other arguments than these, and forces a call of it. Both APIs' forms of tools."""
    for tool in body["tools"]:
        function = tool.get("function", tool)
        if function.get("name") != name:
            continue
        key = "input_schema" if "input_schema" in function else "parameters"
        function[key] = {"type": "object", "additionalProperties": False, "required": list(arguments),
                         "properties": {k: {"type": "string", "const": v} if isinstance(v, str) else {"const": v}
                                        for k, v in arguments.items()}}
        if key == "input_schema":
            body["tool_choice"] = {"type": "tool", "name": name, "disable_parallel_tool_use": True}
        elif "function" in tool:
            body["tool_choice"] = {"type": "function", "function": {"name": name}}
            body["parallel_tool_calls"] = False
        else:
            body["tool_choice"] = {"type": "function", "name": name}
            body["parallel_tool_calls"] = False
        return f"a call of {name} with {json.dumps(arguments)} is forced"
    raise AssertionError(f"{name} is none of {[t.get('name') or t.get('function', {}).get('name') for t in body['tools']]}")


def cold(path, body):
    """Temperature 0 where the request has none, so that the toy's answer is known."""
    if path.startswith("/api/"):
        options = body.setdefault("options", {})
    else:
        options = body
    if "temperature" in options or not ("messages" in body or "input" in body or "prompt" in body):
        return None
    options["temperature"] = 0
    return "temperature 0"
