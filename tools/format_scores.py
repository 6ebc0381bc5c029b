#!/usr/bin/env python3
"""Measures how many answers each weight format costs. Makes the demo model in every supported format, runs all questions of
tests/golden/demo_eval (240 pictures, 60 text prompts) with each and prints the table of docs/FORMATS.md.

  tools/format_scores.py build/release/gemma4 [--work DIR] [--only WORD ...]

The K-quants are made by llama.cpp's quantiser and compressed-tensors by its own package; tools/make_k_quants.py and
tools/make_w4a16.py say what to install, --python PYTHON is the interpreter that has it. A row that cannot be made is
reported and fails the run."""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEMO = ROOT / "models/demo"
EVAL = ROOT / "tests/golden/demo_eval"
# int8 everywhere: what a recipe file can do that no built-in recipe does.
INT8 = [{"pattern": ".*(vision_tower|embed_vision).*"}, {"pattern": ".*norm\\.weight"},
        {"pattern": "embed_tokens\\.weight", "bits": 8, "group": "row"}, {"pattern": ".*\\.weight", "bits": 8, "group": 32}]
K_QUANTS = ("Q6_K", "Q5_K", "Q4_K_M", "Q4_K", "Q3_K", "Q2_K")


class Makers:
    """Each makes one checkpoint in `work` and returns its path."""

    def __init__(self, gemma4, python, work):
        self.gemma4, self.python, self.work = str(gemma4), python, work

    def run(self, *command):
        subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def demo(self):
        return DEMO

    def torchao(self, recipe, hqq="f32"):
        out = self.work / f"torchao-{pathlib.Path(recipe).stem}-{hqq}"
        self.run(self.gemma4, "quantize", "--model-dir", DEMO, "--output", out, "--quant-recipe", recipe, "--hqq", hqq, "--force")
        return out

    def int8(self):
        recipe = self.work / "int8.json"
        recipe.write_text(json.dumps(INT8))
        return self.torchao(str(recipe))

    def gguf(self, kind, *flags):
        out = self.work / "-".join([kind, *flags[1:]]) / f"demo-{kind}.gguf"
        out.parent.mkdir(exist_ok=True)
        self.run(self.gemma4, "export", "--format", "gguf", "--model-dir", DEMO, "--output", out, "--type", kind, "--mmproj", "--force",
                 *flags)
        return out

    def k_quant(self, kind):
        bf16 = self.gguf("bf16")
        out = self.work / kind / f"demo-{kind}.gguf"
        out.parent.mkdir(exist_ok=True)
        shutil.copyfile(bf16.with_name("mmproj-demo-bf16.gguf"), out.with_name("mmproj-demo.gguf"))
        self.run(self.python, ROOT / "tools/make_k_quants.py", bf16, out, kind)
        return out

    def w4a16(self, group, *flags):
        out = self.work / f"w4a16-{group}{''.join(flags)}"
        self.run(self.python, ROOT / "tools/make_w4a16.py", DEMO, out, "--group", group, *flags)
        return out

    def mlx(self, bits, group):
        out = self.work / f"mlx-{bits}-{group}"
        if not out.exists():
            self.run(self.gemma4, "export", "--format", "mlx", "--model-dir", DEMO, "--output", out, "--bits", bits,
                     "--group", group)
        return out


def rows(m):
    yield "Hugging Face bf16", lambda: m.demo()
    yield "torchao `default`", lambda: m.torchao("default")
    yield "torchao `sensitive`, HQQ f32", lambda: m.torchao("sensitive")
    yield "torchao `sensitive`, HQQ f16", lambda: m.torchao("sensitive", "f16")
    yield "torchao `sensitive_gs64`", lambda: m.torchao("sensitive_gs64")
    yield "torchao `sensitive_allgs64`", lambda: m.torchao("sensitive_allgs64")
    yield "torchao `balanced`", lambda: m.torchao("balanced")
    yield "torchao int8, groups of 32 (a recipe file)", lambda: m.int8()
    for kind in ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"):
        yield f"GGUF {kind}", lambda kind=kind: m.gguf(kind)
    yield "GGUF q4_0, the embedding too", lambda: m.gguf("q4_0", "--embedding-type", "q4_0")
    for kind in K_QUANTS:
        yield f"GGUF {kind}, embedding Q6_K", lambda kind=kind: m.k_quant(kind)
    for group in (32, 128):
        yield f"compressed-tensors w4a16, groups of {group}, symmetric", lambda group=group: m.w4a16(group)
        yield f"compressed-tensors w4a16, groups of {group}, asymmetric", lambda group=group: m.w4a16(group, "--asymmetric")
    for bits, group in ((8, 64), (6, 64), (5, 64), (4, 64), (4, 32), (3, 64), (2, 32)):
        yield f"MLX, {bits} bits, groups of {group}", lambda bits=bits, group=group: m.mlx(bits, group)


def size_of(path):
    files = path.glob("*.safetensors") if path.is_dir() else [path, *path.parent.glob("mmproj*.gguf")]
    return sum(os.path.getsize(file) for file in files)


def ask(gemma4, model, questions):
    done = subprocess.run([gemma4, "eval", "--backend", "cpu", "--model", model, "--questions", EVAL / questions],
                          stdout=subprocess.PIPE, check=True, text=True)
    found = re.search(r"(\d+) questions, (\d+) right .*, (\d+) equal to the reference", done.stdout)
    total, right, equal = (int(n) for n in found.groups())
    return f"{100 * right / total:.1f} %", f"{100 * equal / total:.1f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gemma4", type=lambda path: str(pathlib.Path(path).resolve()))
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names hold one of these words")
    args = parser.parse_args()
    work = args.work or pathlib.Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    print("| weights | MB | pictures right | as the reference | text right | as the reference |\n|---|---|---|---|---|---|")
    failed = 0
    for name, make in rows(Makers(args.gemma4, args.python, work)):
        if args.only and not any(word in name for word in args.only):
            continue
        try:
            model = make()
            cells = [f"{size_of(model) / 1e6:.1f}", *ask(args.gemma4, model, "demo_eval.json"),
                     *ask(args.gemma4, model, "demo_text_eval.json")]
        except subprocess.CalledProcessError as error:
            failed = 1
            cells = ["could not be made or asked:", (error.stderr or b"")[-200:].decode().strip().replace("\n", " ")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
