#!/usr/bin/env python3
"""Checks that mlx-vlm loads our MLX directories and gives the reference's answers. Runs the demo model's text prompts (token
ids in, greedy token ids out) through it and counts equal answers.

  gemma4 export --format mlx --model-dir models/demo --output demo-mlx --bits 8
  pip install "mlx[cpu]" mlx-vlm && python3 tools/check_mlx.py demo-mlx [--limit N]

The loader is strict: a tensor that is missing, left over or of another shape is an error, in the text model and in the
vision tower."""
import argparse
import json
import pathlib
import sys

import mlx.core as mx
from mlx_vlm.utils import load_model

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/demo_eval"


def greedy(model, ids, count):
    cache, out, step = model.make_cache(), [], ids
    for _ in range(count):
        logits = model(mx.array([step]), cache=cache).logits[0, -1]
        out.append(int(mx.argmax(logits)))
        step = out[-1:]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--limit", type=int, default=60)
    args = parser.parse_args()
    model = load_model(args.model)
    rows = json.loads((GOLDEN / "demo_text_eval.json").read_text())[:args.limit]
    same = 0
    for row in rows:
        got = greedy(model, row["prompt_ids"], len(row["reference_ids"]))
        same += got == row["reference_ids"]
        if got != row["reference_ids"]:
            print("differs:", row["prompt"][-80:], "\n  want", row["reference_ids"], "\n  got ", got)
    print(f"mlx-vlm: {same} of {len(rows)} greedy answers are the reference's, token by token")
    return 0 if same >= 0.95 * len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
