#!/usr/bin/env python3
"""Times this engine and llama.cpp on one CPU and one GGUF file, in turns, and prints their ratios.

usage: compare_llama_cpp.py MODEL.gguf [--gemma4 build/release/gemma4] [--mmproj FILE] [--threads N] [--prompts 128,512]
                            [--steps 16] [--rounds 3]

llama.cpp is that of the PyPI package llama-cpp-python, which must be built for the machine:
    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python
A round is one process of each engine, one after the other, so that both see the same machine. Per row the median of the
rounds, and the least and the largest ratio of a round. Random weights will do: gemma4 synth --format q4_0.
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time

PICTURE = (960, 672)  # pixels: 20 x 14 soft tokens of 48 x 48 pixels, the budget of 280
PICTURE_TOKENS = 280
DECODE = "decode"


def timed_ms(work):
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def time_text(llm, args):
    """Milliseconds of each prompt, and of a decode step at an empty context."""
    result = {}
    for length in args.prompts:
        llm.reset()
        result[f"prompt of {length}"] = timed_ms(lambda: llm.eval([7 + i % 1000 for i in range(length)]))
    llm.reset()
    llm.eval([2])
    llm.eval([8])  # the first step makes buffers
    result[DECODE] = timed_ms(lambda: [llm.eval([9]) for _ in range(args.steps)]) / args.steps
    return result


def time_picture(llm, args):
    """Milliseconds of the vision tower over one picture, and the count of its soft tokens."""
    from llama_cpp import mtmd_cpp
    params = mtmd_cpp.mtmd_context_params_default()
    params.use_gpu, params.print_timings, params.warmup = False, False, True
    params.n_threads = args.threads
    params.image_min_tokens = params.image_max_tokens = PICTURE_TOKENS
    context = mtmd_cpp.mtmd_init_from_file(args.mmproj.encode(), llm.model, params)
    if not context:
        sys.exit(f"compare_llama_cpp: llama.cpp does not read {args.mmproj}")
    pixels = (ctypes.c_uint8 * (3 * PICTURE[0] * PICTURE[1]))(*os.urandom(3 * PICTURE[0] * PICTURE[1]))
    bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(mtmd_cpp.mtmd_bitmap_init(*PICTURE, pixels))
    text = mtmd_cpp.mtmd_default_marker()
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    words = mtmd_cpp.mtmd_input_text(text, len(text), False, True)
    if mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(words), bitmaps, 1) != 0:
        sys.exit("compare_llama_cpp: llama.cpp does not take the picture")
    all_chunks = [mtmd_cpp.mtmd_input_chunks_get(chunks, i) for i in range(mtmd_cpp.mtmd_input_chunks_size(chunks))]
    picture = max(all_chunks, key=mtmd_cpp.mtmd_input_chunk_get_n_tokens)
    ms = timed_ms(lambda: mtmd_cpp.mtmd_encode_chunk(context, picture))
    return {f"picture of {mtmd_cpp.mtmd_input_chunk_get_n_tokens(picture)}": ms}


def llama_process(args):
    """The process of llama.cpp: one line of JSON on standard output."""
    import llama_cpp
    llm = llama_cpp.Llama(args.model, n_ctx=max(args.prompts) + args.steps + 64, n_batch=2048, n_threads=args.threads,
                          n_threads_batch=args.threads, flash_attn=True, verbose=False)
    result = time_text(llm, args)
    if args.mmproj:
        result.update(time_picture(llm, args))
    print(json.dumps({"ms": result, "system": llama_cpp.llama_print_system_info().decode().strip()}))


def run_json(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"compare_llama_cpp: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout[done.stdout.index("{"):])


def run_ours(args):
    command = [args.gemma4, "bench", args.model, "--backend", "cpu", "--json", "--threads", str(args.threads), "--prompts",
               ",".join(map(str, args.prompts)), "--depths", "0", "--batches", "1", "--repeat", "1", "--steps",
               str(args.steps)]
    command += ["--mmproj", args.mmproj, "--images", str(PICTURE_TOKENS)] if args.mmproj else ["--no-vision"]
    report = run_json(command)
    result = {line["what"]: line["ms"] for line in report["results"]}
    decode = next(line for line in report["results"] if line["what"].startswith("decode at 0"))
    named = {f"prompt of {length}": result[f"prompt of {length}"] for length in args.prompts}
    named[DECODE] = decode["ms"]
    if args.mmproj:
        named[f"picture of {PICTURE_TOKENS}"] = result[f"its tower of {PICTURE_TOKENS}"]
    return named, decode


def run_llama(args):
    return run_json([sys.executable, __file__, *sys.argv[1:], "--llama-process"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--gemma4", default="build/release/gemma4")
    parser.add_argument("--mmproj")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prompts", type=lambda text: [int(n) for n in text.split(",")], default=[128, 512])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.llama_process:
        return llama_process(args)

    ours, theirs, decodes = [], [], []
    for number in range(args.rounds):
        named, decode = run_ours(args)
        other = run_llama(args)
        ours.append(named)
        theirs.append(other["ms"])
        decodes.append(decode)
        print(f"round {number + 1} of {args.rounds}: ours {named}, llama.cpp {other['ms']}", file=sys.stderr)
    print(f"llama.cpp: {other['system']}\nthreads: {args.threads}; milliseconds, medians of {args.rounds} rounds\n")
    print(f"{'what':<18}{'ours':>10}{'llama.cpp':>12}{'ratio':>8}   of one round")
    for what in ours[0]:
        a, b = [line[what] for line in ours], [line[what] for line in theirs]
        ratios = [y / x for x, y in zip(a, b)]
        print(f"{what:<18}{statistics.median(a):>10.1f}{statistics.median(b):>12.1f}{statistics.median(ratios):>8.2f}   "
              f"{min(ratios):.2f} to {max(ratios):.2f}")
    share = statistics.median(line["of_roofline"] for line in decodes)
    print(f"\nour decode reads {statistics.median(line['gb_per_s'] for line in decodes):.1f} GB/s: {100 * share:.0f} % of "
          "what this machine's memory gives")


if __name__ == "__main__":
    main()
