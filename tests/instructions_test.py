#!/usr/bin/env python3
"""Counts the instructions of a prompt and of a decode step under valgrind, and compares them with tests/instructions.json.

    instructions_test.py PROGRAM COMPILER FOLDER [--renew]

A count needs no quiet machine, so a regression shows where a clock would not tell. valgrind knows AVX2 and not AVX-512:
the kernels of the AVX2 target are counted, with one thread, on the demo checkpoint at int4. Each count is the difference
of two runs, which takes out the start and the load. 2 % more than the number that is kept fails; so does 2 % less, because
the number that is kept must be renewed then (--renew). Exit code 77, which ctest takes for skipped: there is no valgrind,
or the numbers that are kept are another compiler's.
"""
import json
import pathlib
import platform
import re
import shutil
import subprocess
import sys

KEPT = pathlib.Path(__file__).parent / "instructions.json"
TOLERANCE = 0.02
SKIPPED = 77
STEPS = 64
SENTENCE = "The red square is left of the blue circle, and the green one is above both. "


def run(program, folder, name, sentences, answer):
    """Returns the instructions of a run and the tokens of its prompt."""
    counts = folder / f"callgrind.{name}"
    prompt = folder / f"prompt.{name}"
    prompt.write_text(SENTENCE * sentences)
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={counts}", program, "run", folder / "model",
         "--backend", "cpu", "--prompt-file", prompt, "--raw-prompt", "--threads", "1", "--max-seq-len", "1024",
         "--temperature", "0", "--seed", "1", "--max-new-tokens", str(answer), "--ignore-eos", "--no-vision", "--json"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"instructions_test: {name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    report = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("{")))
    if report["generated_tokens"] != answer:
        sys.exit(f"instructions_test: {name} has {report['output_tokens']} tokens in place of {answer}")
    return int(re.search(r"^(?:totals|summary): (\d+)", counts.read_text(), re.M)[1]), report["prompt_tokens"]


def count(program, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([program, "quantize", "--model-dir", "models/demo", "--output", folder / "model"], check=True,
                   capture_output=True)
    short, short_tokens = run(program, folder, "short", 1, 2)
    answer, _ = run(program, folder, "answer", 1, 2 + STEPS)
    long, long_tokens = run(program, folder, "long", 11, 2)
    return {"prompt, each token": (long - short) // (long_tokens - short_tokens), "decode step": (answer - short) // STEPS}


def verdict(now, before):
    if now > before * (1 + TOLERANCE):
        return "more"
    return "fewer" if now < before * (1 - TOLERANCE) else ""


def main(program, compiler, folder, renew=None):
    if platform.machine() != "x86_64" or not shutil.which("valgrind"):
        print("skipped: this needs x86-64 and valgrind")
        return SKIPPED
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if renew is None and kept["compiler"] != compiler:
        print(f"skipped: the numbers in {KEPT.name} are of {kept['compiler']}, this is {compiler}")
        return SKIPPED
    folder = pathlib.Path(folder)
    counted = count(str(pathlib.Path(program).resolve()), folder)
    if renew is not None:
        KEPT.write_text(json.dumps({"compiler": compiler, "instructions": counted}, indent=2) + "\n")
        print(f"written to {KEPT}: {counted}")
        return 0
    for twin, said in ((0.97, "more"), (1.03, "fewer"), (1.0, "")):  # a comparison that cannot fail proves nothing
        assert verdict(counted["decode step"], counted["decode step"] * twin) == said
    bad = False
    for name, now in counted.items():
        before = kept["instructions"][name]
        said = verdict(now, before)
        bad = bad or said != ""
        print(f"{name}: {now} instructions, {before} are kept ({now / before - 1:+.2%})")
        if said == "more":
            print(f"  more: see where with callgrind_annotate {folder}/callgrind.*; if it is meant, renew the number")
        elif said == "fewer":
            print("  fewer: renew the number, so that it stays so")
    if bad:
        print(f"to renew: {sys.argv[0]} {program} '{compiler}' {folder} --renew")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
