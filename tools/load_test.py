#!/usr/bin/env python3
"""Many clients at once against a `gemma4 serve` on this machine: streams, cancels, disconnects, malformed requests, and
one in a hundred of hostile_requests.py.

Every stream's text is compared with the answer to the same prompt alone (temperature 0), so lost or mixed streams are
noticed. Prints one line of JSON: requests by outcome, throughput, latency of /health, resident memory over time. Exits 1
if something was wrong. Uses only the standard library and the loopback interface.

usage: tools/load_test.py --binary build/release/gemma4 [--clients 200] [--seconds 300]
"""
import argparse
import asyncio
import collections
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys
import time

import hostile_requests

ROOT = pathlib.Path(__file__).resolve().parent.parent
MALFORMED = [
    b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{{{{{",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n{\"model\": \"demo\", \"prompt\": \"x\", \"n\": -5}",
    b"\x00\x01\x02\xff" * 50, b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n",
]


HOSTILE_SHARE = 0.01
GROWTH_MAX = 32  # MiB, of the least memory in a quarter of the time: more is taken by large requests while they last


# Its pages are all in use within a minute, so that memory that grows after that is something else.
SMALL_CACHE = ["--cache-tokens", "16384"]


def post(path, body):
    text = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(text)}\r\n\r\n").encode() + text


def prompts():
    words = "ladder forest window garden silver planet bridge castle".split()
    for i in range(40):
        yield f"Count from {i % 30 + 1} to {i % 30 + 9}."
    for word in words:
        yield f"Spell the word {word}."


def chat(text, stream):
    return {"model": "demo", "temperature": 0, "stream": stream, "max_tokens": 64,
            "messages": [{"role": "user", "content": text}]}


async def whole(port, request):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        data = await asyncio.wait_for(reader.read(), 120)
    finally:
        writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, head, body


def unchunk(body):
    out, at = b"", 0
    while True:
        end = body.find(b"\r\n", at)
        if end < 0:
            return out, False
        size = int(body[at:end], 16)
        if size == 0:
            return out, True
        out += body[end + 2:end + 2 + size]
        at = end + 2 + size + 2


class Load:
    def __init__(self, port, pid, arguments):
        self.port, self.pid, self.arguments = port, pid, arguments
        self.outcomes, self.wrong = collections.Counter(), []
        self.health, self.memory, self.first, self.tokens = [], [], [], 0
        self.expected = {}
        self.end, self.rows = 0, hostile_requests.rows()

    async def learn(self):
        for text in prompts():
            status, _, body = await whole(self.port, post("/v1/chat/completions", chat(text, False)))
            assert status == 200, body
            self.expected[text] = json.loads(body)["choices"][0]["message"]["content"]

    async def stream(self, text, leave_after):
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = b""
        try:
            writer.write(post("/v1/chat/completions", chat(text, True)))
            await writer.drain()
            while part := await asyncio.wait_for(reader.read(65536), 120):
                if not data:
                    self.first.append(time.monotonic() - began)
                data += part
                if leave_after is not None and len(data) >= leave_after:
                    self.outcomes["left"] += 1
                    return
        finally:
            writer.transport.abort() if leave_after is not None else writer.close()
        head, _, body = data.partition(b"\r\n\r\n")
        status = int(head.split()[1]) if head else 0
        if status != 200:
            self.outcomes[f"status {status}"] += 1
            return
        body, complete = unchunk(body)
        said = ""
        for event in body.decode().split("\n\n"):
            if event.startswith("data: {"):
                chunk = json.loads(event[6:])
                if "error" in chunk:
                    self.wrong.append(chunk["error"])
                elif chunk["choices"]:
                    said += chunk["choices"][0]["delta"].get("content") or ""
        if not complete or not body.endswith(b"data: [DONE]\n\n"):
            self.wrong.append(f"a stream was cut: {text}")
        elif said != self.expected[text]:
            self.wrong.append(f"{text} was answered {said!r}, alone {self.expected[text]!r}")
        self.outcomes["streamed"] += 1
        self.tokens += len(said.split())

    async def malformed(self, dice):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(dice.choice(MALFORMED))
            await writer.drain()
            data = await asyncio.wait_for(reader.read(4096), 30)
            self.outcomes["malformed"] += 1
            if data and data.split()[1][:1] != b"4" and data.split()[1] != b"505":
                self.wrong.append(f"a malformed request was answered {data[:60]!r}")
        finally:
            writer.close()

    # Its answer may be any that is right for it, 429 and 503 of a busy server, or none: who sends half a body, or too
    # many at once, may be disconnected.
    async def hostile(self, dice):
        row = dice.choice(self.rows)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(hostile_requests.fresh(row.request))
            data = await asyncio.wait_for(reader.read(-1), row.stays or 120)
            self.outcomes["hostile"] += 1
            status = int(data.split(b" ", 2)[1]) if data else 0
            if data and status not in row.statuses | {429, 503}:
                self.wrong.append(f"{row.name} was answered {status}")
        except asyncio.TimeoutError:
            self.outcomes["hostile, left"] += 1
            if not row.stays:
                self.wrong.append(f"{row.name} got no answer")
        except OSError:
            self.outcomes["hostile, disconnected"] += 1
        finally:
            writer.transport.abort()

    async def client(self, number):
        dice = random.Random(number)
        texts = list(self.expected)
        while time.monotonic() < self.end:
            kind = dice.random()
            try:
                if kind >= 1 - HOSTILE_SHARE:
                    await self.hostile(dice)
                elif kind < 0.1:
                    await self.malformed(dice)
                else:
                    await self.stream(dice.choice(texts), dice.randrange(1, 2500) if kind < 0.25 else None)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                self.outcomes[type(error).__name__] += 1
            except asyncio.TimeoutError:
                self.wrong.append("no answer in time")
            # Where clients never pause, how long they wait is only how many they are.
            await asyncio.sleep(dice.random() * self.arguments.pause)

    async def watch_health(self):
        while time.monotonic() < self.end:
            began = time.monotonic()
            status, _, _ = await whole(self.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            self.health.append(time.monotonic() - began)
            if status != 200:
                self.wrong.append(f"/health: {status}")
            await asyncio.sleep(0.05)

    async def watch_memory(self):
        while time.monotonic() < self.end:
            text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
            self.memory.append(int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024)
            await asyncio.sleep(1)

    async def run(self):
        await self.learn()
        self.end = time.monotonic() + self.arguments.seconds
        await asyncio.gather(self.watch_health(), self.watch_memory(),
                             *(self.client(i) for i in range(self.arguments.clients)))


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0


# /health as a separate process sees it: the clients above share one Python thread, whose own delays are not the server's.
PROBE = """
import http.client, json, sys, time
port, end, times = int(sys.argv[1]), time.monotonic() + float(sys.argv[2]), []
while time.monotonic() < end:
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/health")
    connection.getresponse().read()
    connection.close()
    times.append(time.monotonic() - began)
    time.sleep(0.02)
print(json.dumps(times))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build/release/gemma4"))
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--pause", type=float, default=0.2, help="longest wait of a client between two requests")
    parser.add_argument("options", nargs="*", help="more options of gemma4 serve, after --")
    arguments = parser.parse_args()
    server = subprocess.Popen([arguments.binary, "serve", "--model", str(ROOT / "models/demo"), "--port", "0",
                               "--max-seq-len", "4096", *(arguments.options or SMALL_CACHE)], stdout=subprocess.PIPE, text=True)
    port = int(re.search(r":(\d+)/", server.stdout.readline())[1])
    load = Load(port, server.pid, arguments)
    probe = subprocess.Popen([sys.executable, "-c", PROBE, str(port), str(arguments.seconds)], stdout=subprocess.PIPE)
    asyncio.run(load.run())
    probed = json.loads(probe.communicate()[0])
    time.sleep(1)
    _, _, metrics = asyncio.run(whole(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    left = {name: int(re.search(rf"^{name} (\d+)", metrics.decode(), re.M)[1])
            for name in ("gemma4_requests_running", "gemma4_requests_waiting", "gemma4_streams")}
    server.terminate()
    code = server.wait(60)
    quarter = max(1, len(load.memory) // 4)
    least = [min(load.memory[i * quarter:(i + 1) * quarter]) for i in range(4)]
    grown = least[3] - least[1]
    if grown > GROWTH_MAX:
        load.wrong.append(f"the least resident memory of a quarter grew by {grown:.0f} MiB from the second to the last")
    print(json.dumps({
        "clients": arguments.clients, "seconds": arguments.seconds, "outcomes": dict(load.outcomes),
        "wrong": len(load.wrong), "examples": load.wrong[:5], "streams_per_second": load.outcomes["streamed"] / arguments.seconds,
        "first_byte_ms": {"p50": round(1000 * percentile(load.first, 0.5), 1), "p99": round(1000 * percentile(load.first, 0.99), 1)},
        "health_ms": {"count": len(probed), "p50": round(1000 * percentile(probed, 0.5), 2),
                      "p99": round(1000 * percentile(probed, 0.99), 2), "max": round(1000 * max(probed), 2)},
        "health_ms_from_a_busy_client": {"p99": round(1000 * percentile(load.health, 0.99), 2)},
        "rss_mib": {"at_start": round(load.memory[0]), "least_of_quarters": [round(value) for value in least],
                    "median": round(statistics.median(load.memory)), "most": round(max(load.memory)),
                    "end": round(load.memory[-1])},
        "left_behind": left, "exit_code": code}, indent=1))
    return 1 if load.wrong or code != 0 or any(left.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
