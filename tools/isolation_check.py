#!/usr/bin/env python3
"""What others wait while a hostile request is sent in a loop by four clients.

For each row of hostile_requests.py a server is started, four clients send the row's request again and again, and two
other processes ask one-token chats. One line a row: how many requests were answered with which status, the others'
times, the server's resident memory. Exits 1 if a chat failed or took too long, a status was wrong, or the server ended.

usage: tools/isolation_check.py --binary build/release/gemma4 [--model DIR] [--limit 1.0] [--seconds 15] [--only TEXT] [--part 1/4] [--memory 1500]
"""
import argparse
import asyncio
import collections
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import hostile_requests

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLIENTS = 4
OWN_LIMIT = 60  # seconds that a row's own request may take: two large ones are prepared at a time, beside the chats
HALF_BODIES = 520

# Others are processes of their own: a delay of the clients' Python thread is not the server's.
OTHER = """
import http.client, json, sys, time
port, end, name, times, wrong = int(sys.argv[1]), time.monotonic() + float(sys.argv[2]), sys.argv[3], [], []
while time.monotonic() < end:
    body = json.dumps({"model": "demo", "max_tokens": 1, "temperature": 0,
                       "messages": [{"role": "user", "content": f"{name} {len(times)}: Count from 9 to 17."}]})
    began = time.monotonic()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            wrong.append(f"{answer.status} {text[:100]}")
        connection.close()
    except Exception as error:
        wrong.append(repr(error))
    times.append(time.monotonic() - began)
    time.sleep(0.02)
print(json.dumps([times, wrong]))
"""


async def once(port, row, outcomes):
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        outcomes[type(error).__name__] += 1
        await asyncio.sleep(0.1)
        return
    began = time.monotonic()
    try:
        writer.write(hostile_requests.fresh(row.request))
        data = await asyncio.wait_for(reader.read(-1), row.stays or 60)
        if time.monotonic() - began > OWN_LIMIT:
            outcomes["slow"] += 1
        first = data.split(b" ", 2)[1:2]
        outcomes[int(first[0]) if first and first[0].isdigit() else "nothing"] += 1
        if b"\nHTTP/1.1 " in data or b"}HTTP/1.1 " in data:
            outcomes["second answer"] += 1
    except asyncio.TimeoutError:
        outcomes["left" if row.stays else "no answer"] += 1
    except OSError as error:
        outcomes[type(error).__name__] += 1
    finally:
        writer.transport.abort()


async def hold_bodies(port, outcomes, end):
    """Row 8: this client's share of 520 connections with half a body, opened again as they are dropped."""
    half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    held = []
    while time.monotonic() < end:
        held = [one for one in held if not one[0].at_eof()]
        while len(held) < HALF_BODIES // CLIENTS:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(half)
                held.append((reader, writer))
                outcomes["half bodies"] += 1
            except OSError as error:
                outcomes[type(error).__name__] += 1
        await asyncio.sleep(0.05)
    for _, writer in held:
        writer.transport.abort()


async def attack(port, row, seconds):
    outcomes, end = collections.Counter(), time.monotonic() + seconds

    async def client():
        while time.monotonic() < end:
            await once(port, row, outcomes)

    await asyncio.gather(*(client() if row.request else hold_bodies(port, outcomes, end) for _ in range(CLIENTS)))
    return outcomes


def resident(pid):
    try:
        return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) // 1024
    except (OSError, TypeError):
        return 0


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("inf")


def measure(arguments, row):
    server = subprocess.Popen([arguments.binary, "serve", "--model", arguments.model, "--model-name", "demo", "--port", "0",
                               "--max-seq-len", "4096", *arguments.options], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True)
    port = int(re.search(r":(\d+)/", server.stdout.readline())[1])
    others = [subprocess.Popen([sys.executable, "-c", OTHER, str(port), str(arguments.seconds), name],
                               stdout=subprocess.PIPE, text=True) for name in ("A", "B")]
    outcomes = asyncio.run(attack(port, row, arguments.seconds))
    times, wrong = [], []
    for other in others:
        more = json.loads(other.communicate()[0])
        times, wrong = times + more[0], wrong + more[1]
    peak, ended = resident(server.pid), server.poll()
    server.send_signal(signal.SIGTERM)
    try:
        code = server.wait(60)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
        code = "ignores SIGTERM"
    statuses = {key for key, count in outcomes.items() if count} - {"left", "half bodies"}
    if row.request:
        wrong += [f"outcome {key}" for key in statuses - row.statuses]
    if ended is not None or code != 0:
        wrong.append(f"the server ended: {code}")
    if peak > arguments.memory:
        wrong.append(f"{peak} MiB")
    p99 = percentile(times, 0.99)
    if p99 > arguments.limit:
        wrong.append(f"p99 {p99:.2f} s")
    print(f"{row.name:36} {len(times):5} {percentile(times, 0.5) * 1000:7.0f} {p99 * 1000:7.0f} {max(times) * 1000:7.0f} {peak:6} "
          f"{dict(outcomes)} {'; '.join(wrong[:3]) or 'ok'}", flush=True)
    return not wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build/release/gemma4"))
    parser.add_argument("--model", default=str(ROOT / "models/demo"))
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--memory", type=int, default=1500, help="MiB that the server may take")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds that p99 of the others may be")
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument("--part", default="1/1", help="every Nth row from the Ith on, so that N runs share the list")
    parser.add_argument("options", nargs="*", help="more options of gemma4 serve, after --")
    arguments = parser.parse_args()
    print(f"{'row':36} chats  p50 ms  p99 ms  max ms peak MiB", flush=True)
    rows = [hostile_requests.Row("none", hostile_requests.chat(max_tokens=1), {200}), *hostile_requests.rows(),
            hostile_requests.Row("8 520 half bodies", b"", set())]
    part, parts = (int(number) for number in arguments.part.split("/"))
    chosen = [row for row in rows if arguments.only in row.name][part - 1::parts]
    held = [measure(arguments, row) for row in chosen]
    print(f"{sum(held)} of {len(held)} rows held")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
