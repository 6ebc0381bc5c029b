#!/usr/bin/env python3
"""Can one API key learn from `cached_tokens` or from time what another key asked?

Alice asks prompts with a secret. Mallory, with another key, asks pairs in random order: the prompt with the right
secret, and a control with a wrong one. Each prompt begins with a number that was never asked before, so only Alice's
request could have left anything to reuse. If nothing crosses, both kinds have the same cached_tokens, and the chance
that a right guess is answered faster than a control is one half: the share of pairs in which it was is compared with a
fair coin. The same with one key for both shows that the test would see a hit. Exits 1 if either is not as it should be.

usage: tools/key_isolation.py --binary build/release/gemma4 [--guesses 10000]
"""
import argparse
import http.client
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILLER = "The garden behind the old bridge has a silver gate. " * 7  # pages of 64 tokens
SIGMAS = 4  # a fair coin is this far off once in 16,000 runs


class Client:
    def __init__(self, port, key):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def ask(self, text):
        """Seconds to the answer, and how many tokens were cached."""
        body = json.dumps({"model": "demo", "max_tokens": 1, "temperature": 0,
                           "messages": [{"role": "user", "content": text}]})
        began = time.monotonic()
        self.connection.request("POST", "/v1/chat/completions", body, self.headers)
        answer = self.connection.getresponse()
        text = answer.read()
        took = time.monotonic() - began
        assert answer.status == 200, text
        return took, json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"]


def prompt(number, secret):
    return f"{number:06d} My pin is {secret}. Do not tell anyone. {FILLER}"


def measure(port, asker, guesser, pairs):
    dice, hits, faster, differences = random.Random(), [0, 0], 0, []
    # The right guess is the first of its pair in exactly half of them: the second may be faster for being second.
    right_first = [number % 2 == 0 for number in range(pairs)]
    dice.shuffle(right_first)
    for number in range(pairs):
        right, wrong = dice.sample(range(10_000_000, 100_000_000), 2)
        asker.ask(prompt(number, right))
        times = {}
        for kind, secret in ([(0, right), (1, wrong)] if right_first[number] else [(1, wrong), (0, right)]):
            times[kind], cached = guesser.ask(prompt(number, secret))
            hits[kind] += cached
        faster += times[0] < times[1]
        differences.append(times[1] - times[0])
    differences.sort()
    return {"guesses": 2 * pairs, "cached_tokens_of_right_guesses": hits[0], "of_controls": hits[1],
            "right_guess_faster": round(faster / pairs, 4), "sigmas": round((faster - pairs / 2) / math.sqrt(pairs / 4), 2),
            "median_ms_saved": round(1000 * differences[pairs // 2], 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build/release/gemma4"))
    parser.add_argument("--guesses", type=int, default=10000)
    parser.add_argument("--known", type=int, default=400, help="guesses of the run with one key, which must see hits")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = os.path.join(folder, "keys")
        pathlib.Path(keys).write_text("alice\nmallory\n")
        server = subprocess.Popen([arguments.binary, "serve", "--model", str(ROOT / "models/demo"), "--port", "0",
                                   "--api-key-file", keys], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        port = int(re.search(r":(\d+)/", server.stdout.readline())[1])
        alice, mallory = Client(port, "alice"), Client(port, "mallory")
        apart = measure(port, alice, mallory, arguments.guesses // 2)
        # The numbers start again, but these prompts are Alice's alone: only her own are reused.
        shared = measure(port, alice, alice, arguments.known // 2)
        server.terminate()
        server.wait(60)
    print(json.dumps({"two keys": apart, "one key": shared}, indent=1))
    silent = apart["cached_tokens_of_right_guesses"] == apart["of_controls"] and abs(apart["sigmas"]) < SIGMAS
    seen = shared["cached_tokens_of_right_guesses"] > shared["of_controls"] and shared["sigmas"] > SIGMAS
    print("nothing crosses keys" if silent else "SOMETHING CROSSES KEYS",
          "" if seen else "(BUT A HIT WOULD NOT BE SEEN EITHER)")
    return 0 if silent and seen else 1


if __name__ == "__main__":
    sys.exit(main())
