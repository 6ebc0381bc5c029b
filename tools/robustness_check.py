#!/usr/bin/env python3
"""What isolation_check.py cannot ask of one server: files, ranks, the memory of requests that wait, log probabilities.

Each row says ok or what is wrong. A binary from before these were repaired (commit 48506b8) fails every row. Uses only
the standard library. Exits 1 if a row does not hold.

usage: tools/robustness_check.py --binary build/release/gemma4 [--wide DIR] [--only TEXT]
--wide: a model with 262,144 words (tests/clients/variants.py --words), for the row on log probabilities.
"""
import argparse
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import hostile_requests

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEMO = ROOT / "models/demo"


class Tool:
    """The program under test, and a folder for one row."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.running = binary, pathlib.Path(folder), []

    def start(self, *arguments, **variables):
        process = subprocess.Popen([self.binary, *map(str, arguments)], stdin=subprocess.DEVNULL, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **variables})
        self.running.append(process)
        return process

    def run(self, *arguments):
        """Its exit code, and what it wrote to standard error."""
        process = self.start(*arguments)
        errors = process.communicate(timeout=120)[1]
        return process.returncode, errors

    def serve(self, model, *options, **variables):
        process = self.start("serve", "--model", model, "--model-name", "demo", "--port", "0", "--max-seq-len", "4096", *options,
                             **variables)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        return process, int(re.search(r":(\d+)/", process.stdout.readline())[1])

    def stop(self):
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


def wait_for(question, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if question():
            return True
        time.sleep(0.001)
    return False


def code_within(process, seconds):
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def ask(port, seconds=20, **more):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    body = json.dumps({"model": "demo", "max_tokens": 1, "temperature": 0, "messages": [{"role": "user", "content": "x"}], **more})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def sizes(folder):
    return {path.name: path.stat().st_size for path in folder.glob("*partial*")} if folder.exists() else {}


def waiting_pictures(tool):
    """Row 5: 110 requests of 56 pictures of 1x1 wait while 16 others run."""
    server, port = tool.serve(DEMO)
    request = hostile_requests.chat(hostile_requests.pictures(hostile_requests.png(1, 1, 8, False), 56), max_tokens=64)
    open_ones = []
    for _ in range(126):
        one = socket.create_connection(("127.0.0.1", port))
        one.sendall(request)
        open_ones.append(one)
    peak, end = 0, time.monotonic() + 20
    while time.monotonic() < end:
        status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
        peak = max(peak, int(re.search(r"VmRSS:\s+(\d+)", status)[1]) // 1024)
        time.sleep(0.1)
    for one in open_ones:
        one.close()
    return "" if peak < 3000 else f"{peak} MiB"


def two_quantize(tool):
    """Row 9: a second quantize into the same directory, killed in the middle, spoils nothing that the first one wrote."""
    def file_hash(folder):
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    recipe = ["quantize", "--model-dir", DEMO, "--threads", "1", "--output"]
    code, errors = tool.run(*recipe, tool.folder / "alone")
    if code != 0:
        return f"quantize alone: {code} {errors}"
    right, caught = file_hash(tool.folder / "alone"), 0
    for attempt in range(20):
        both = tool.folder / f"both{attempt}"
        first = tool.start(*recipe, both)
        wait_for(lambda: any(size > 1 << 20 for size in sizes(both).values()) or first.poll() is not None, 60)
        first.send_signal(signal.SIGSTOP)
        before = sizes(both)
        if not before:  # it was done
            first.send_signal(signal.SIGCONT)
            first.communicate()
            continue
        second = tool.start(*recipe, both)
        wait_for(lambda: sizes(both) != before or second.poll() is not None, 60)
        second.kill()
        second.communicate()
        first.send_signal(signal.SIGCONT)
        errors = first.communicate()[1]
        if first.returncode != 0:
            return f"the first ended with {first.returncode}: {errors.strip()[-200:]}"
        if file_hash(both) != right:
            return "the first says 0, and its file is wrong"
        caught += 1
        if caught == 3:
            return ""
    return "the first was never caught in the middle"


def hello(version):
    """The first bytes of a process that says it is rank 1 of 2: version 1 had no token, version 2 has a nonce."""
    return struct.pack("<QIIII", 0x346b6e696c346d67, version, 1, 2, 0) + (bytes(16) if version == 2 else b"")


def rank_variables(rank, port):
    return {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def stranger(tool):
    """Row 10: strangers who say that they are rank 1 before rank 1 does, and then nothing."""
    port = free_port()
    command = ["run", "--model", DEMO, "--prompt", "Hi", "--max-new-tokens", "2", "--temperature", "0", "--one-process-per-gpu"]
    rank0 = tool.start(*command, **rank_variables(0, port))
    strangers = []

    def speak(version):
        try:
            one = socket.create_connection(("127.0.0.1", port))
        except OSError:
            return False
        one.sendall(hello(version))
        strangers.append(one)
        return True

    for version in (1, 2):
        wait_for(lambda: speak(version) or rank0.poll() is not None, 20)
    time.sleep(0.5)
    rank1 = tool.start(*command, **rank_variables(1, port))
    codes = [code_within(rank0, 40), code_within(rank1, 10)]
    return "" if codes == [0, 0] else f"exit codes {codes} (None: it did not end)"


def silent_start(tool):
    """Row 10: SIGTERM ends a rank 0 that waits for rank 1."""
    port = free_port()
    rank0 = tool.start("serve", "--model", DEMO, "--port", "0", "--one-process-per-gpu", **rank_variables(0, port))
    one = []

    def reach():
        try:
            one.append(socket.create_connection(("127.0.0.1", port)))
        except OSError:
            return False
        return True

    wait_for(reach, 20)
    one[0].sendall(hello(1))
    time.sleep(1)
    rank0.send_signal(signal.SIGTERM)
    return "" if code_within(rank0, 10) is not None else "SIGTERM does not end it in 10 s"


def stopped_rank(tool):
    """Row 10: a rank that is stopped ends the others, and no chat waits for ever."""
    port = free_port()
    options = ["--one-process-per-gpu"]
    if "--rank-timeout" in subprocess.run([tool.binary, "serve", "--help"], capture_output=True, text=True).stdout:
        options += ["--rank-timeout", "3"]
    rank1 = tool.start("serve", "--model", DEMO, "--model-name", "demo", "--port", "0", "--max-seq-len", "4096", *options,
                       **rank_variables(1, port))
    rank0, http_port = tool.serve(DEMO, *options, **rank_variables(0, port))
    if ask(http_port)[0] != 200:
        return "no answer from two ranks"
    rank1.send_signal(signal.SIGSTOP)
    try:
        status = ask(http_port, seconds=30)[0]
    except TimeoutError:
        return "a chat waits for the stopped rank for 30 s"
    except (OSError, http.client.HTTPException):
        status = 0
    code = code_within(rank0, 30)
    return "" if status != 200 and code == 3 else f"status {status}, exit code {code}"


def overwriting(tool):
    """Row 16: what is there is not overwritten, and a symbolic link is not followed."""
    wrong = []
    kept = tool.folder / "mine.gguf"
    kept.write_text("mine")
    code, _ = tool.run("export", "--format", "gguf", "--model", DEMO, "--output", kept)
    if code != 2 or kept.read_text() != "mine":
        wrong.append(f"export over a file: {code}, {kept.stat().st_size} bytes")
    folder = tool.folder / "there"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    code, _ = tool.run("quantize", "--model-dir", DEMO, "--output", folder)
    if code != 2 or (folder / "config.json").read_text() != "{}":
        wrong.append(f"quantize into a directory with files: {code}")
    linked, target = tool.folder / "linked", tool.folder / "target"
    linked.mkdir()
    target.write_text("target")
    (linked / "model.safetensors.partial").symlink_to(target)
    tool.run("quantize", "--model-dir", DEMO, "--output", linked)
    if target.stat().st_size != 6:
        wrong.append(f"a symbolic link was followed: its target has {target.stat().st_size} bytes")
    return "; ".join(wrong)


def truncated_weights(tool):
    """Row 17: a program whose weights are truncated while it is served."""
    program = tool.folder / "program"
    code, errors = tool.run("export", "--format", "program", "--model", DEMO, "--output", program, "--max-seq-len", "4096")
    if code != 0:
        return f"export: {code} {errors}"
    server, port = tool.serve(program)
    if ask(port)[0] != 200:
        return "no answer"
    weights = max(program.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(weights, 4096)
    try:
        status = ask(port)[0]
    except (OSError, http.client.HTTPException):
        status = 0
    code = code_within(server, 20)
    return "" if status >= 500 and code == 3 else f"status {status}, exit code {code}"


def log_probabilities(tool, wide):
    """Row 18: at 262,144 words, a stream beside 15 that want log probabilities and beside 15 that do not, in turns."""
    server, port = tool.serve(wide, "--max-seqs", "16")
    no_end = {"logit_bias": {str(token): -100 for token in (1, 9, 16)}, "temperature": 1.0}

    def step_beside(**more):
        others = threading.Thread(target=lambda: ask(port, 300, n=15, max_tokens=100, **no_end, **more))
        others.start()
        time.sleep(0.3)
        began = time.monotonic()
        status, text = ask(port, 120, max_tokens=30, **no_end)
        took = time.monotonic() - began
        busy = others.is_alive()
        others.join()
        if status != 200 or not busy:
            raise RuntimeError(f"{status}, the others {'run' if busy else 'had ended'}: {text[:200]}")
        return took / json.loads(text)["usage"]["completion_tokens"]

    step_beside()
    pairs = [(step_beside(), step_beside(logprobs=True, top_logprobs=20)) for _ in range(3)]
    plain, beside = (1000 * sorted(column)[1] for column in zip(*pairs))
    print(f"    a step: {plain:.1f} ms, beside log probabilities {beside:.1f} ms", flush=True)
    return "" if beside < 1.5 * plain else f"{beside / plain:.2f} times as long"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build/release/gemma4"))
    parser.add_argument("--wide", help="a model with 262,144 words")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    rows = [("5 pictures that wait", waiting_pictures), ("9 two quantize", two_quantize), ("10 strangers", stranger),
            ("10 SIGTERM at the start", silent_start), ("10 stopped rank", stopped_rank), ("16 overwriting", overwriting),
            ("17 truncated weights", truncated_weights)]
    if arguments.wide:
        rows.append(("18 log probabilities", lambda tool: log_probabilities(tool, arguments.wide)))
    failed = 0
    for name, row in rows:
        if arguments.only not in name:
            continue
        folder = tempfile.mkdtemp(prefix="gemma4-robustness-")
        tool = Tool(arguments.binary, folder)
        try:
            wrong = row(tool)
        except Exception as error:  # a row that cannot be asked does not hold
            wrong = f"{type(error).__name__}: {error}"
        finally:
            tool.stop()
            shutil.rmtree(folder, ignore_errors=True)
        failed += bool(wrong)
        print(f"{name:28} {wrong or 'ok'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
