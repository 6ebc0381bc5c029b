#!/usr/bin/env python3
"""Checks that llama.cpp loads our GGUF files and gives the reference's answers. Runs the demo model's text prompts (token ids
in, greedy token ids out) and, with an mmproj file, its pictures, through llama.cpp and counts equal answers.

  gemma4 export --format gguf --model-dir models/demo --output demo.gguf --mmproj
  pip install xllamacpp pillow && python3 tools/check_gguf_llama_cpp.py demo.gguf [--mmproj mmproj-demo.gguf] [--limit N]

xllamacpp is llama.cpp with its server as a Python module, built for most machines; llama-cpp-python would also do.
llama.cpp chooses other picture sizes than the reference, so pictures are resized here (with Pillow) to the size that the
reference chose, which llama.cpp then keeps. Pictures are compared by their answers."""
import argparse
import base64
import io
import json
import math
import pathlib
import sys

import xllamacpp
from PIL import Image

# The demo model's prompt format for one question; the real model's template is too long to repeat here.
TEMPLATE = ("{%- for m in messages -%}<|turn>{{ m.role }}\n"
            "{%- if m.content is string -%}{{ m.content }}{%- else -%}{%- for part in m.content -%}{{ part.text }}"
            "{%- endfor -%}{%- endif -%}<turn|>\n{% endfor -%}<|turn>model\n<|channel>thought\n<channel|>")
GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/demo_eval"


def server(model, mmproj):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 2048
    params.n_parallel = 1
    params.warmup = False
    if mmproj:
        params.mmproj.path = mmproj
        params.mmproj_use_gpu = False
        params.chat_template = TEMPLATE
        params.use_jinja = True
        params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
        params.image_min_tokens, params.image_max_tokens = 1, 70
    return xllamacpp.Server(params)


def complete(llama, prompt, tokens):
    reply = llama.handle_completions({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "top_k": 1, "logprobs": 1,
                                      "cache_prompt": False})
    if isinstance(reply, str):
        reply = json.loads(reply)
    if "choices" not in reply:
        sys.exit(f"llama.cpp refused: {reply}")
    return reply["choices"][0]


def check_text(llama, limit):
    rows = json.loads((GOLDEN / "demo_text_eval.json").read_text())[:limit]
    same = 0
    for row in rows:
        choice = complete(llama, row["prompt_ids"], len(row["reference_ids"]) + 8)
        got = [t["id"] for t in choice["logprobs"]["content"]]
        want = [i for i in row["reference_ids"]]
        # llama.cpp leaves the token that ended the answer out of its list.
        equal = got == want or got == want[:-1]
        same += equal
        if not equal:
            print("differs:", row["prompt"][-80:], "\n  want", want, "\n  got ", got)
    print(f"text: {same} of {len(rows)} greedy answers are the reference's, token by token")
    return same == len(rows)


def resized(path, budget=70, cell=48):
    image = Image.open(path).convert("RGB")
    factor = math.sqrt(budget * cell * cell / (image.width * image.height))
    size = [int(factor * side / cell) * cell for side in image.size]
    out = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def check_images(llama, limit):
    rows = json.loads((GOLDEN / "demo_eval.json").read_text())["rows"][:limit]
    same = right = 0
    for row in rows:
        data = base64.b64encode(resized(GOLDEN / "images" / row["image"])).decode()
        content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}},
                   {"type": "text", "text": row["question"]}]
        reply = llama.handle_chat_completions({"messages": [{"role": "user", "content": content}], "temperature": 0,
                                               "top_k": 1, "max_tokens": 64})
        if isinstance(reply, str):
            reply = json.loads(reply)
        if "choices" not in reply:
            sys.exit(f"llama.cpp refused: {reply}")
        got = reply["choices"][0]["message"]["content"].strip()
        same += got == row["reference_output"].strip()
        right += got == row["answer"].strip()
    print(f"images: {same} of {len(rows)} answers are the reference's, {right} are right")
    return same >= 0.8 * len(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--mmproj")
    parser.add_argument("--limit", type=int, default=60)
    args = parser.parse_args()
    good = check_text(server(args.model, None), args.limit)
    if args.mmproj:  # a server with a vision half takes no token ids
        good = check_images(server(args.model, args.mmproj), args.limit) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
