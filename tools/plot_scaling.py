#!/usr/bin/env python3
"""The cost model of docs/SCALING.md: prints its tables and draws docs/images/scaling.png (needs matplotlib).

    plot_scaling.py [OUTPUT.png]

MEASURED are figures of docs/CUDA.md (one H100, decode of one row). ASSUMED are not measured here: replace them by what
tools/gpus_check.sh prints on a host with several GPUs.
"""
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# 31B: name, rows, columns, how often in a step, microseconds at 1 row. int4 in groups of 32.
MEASURED_PRODUCTS = [
    ("qkv, sliding", 16384, 5376, 50, 23.0),
    ("qkv, full", 18432, 5376, 10, 24.8),
    ("o, sliding", 5376, 8192, 50, 15.3),
    ("o, full", 5376, 16384, 10, 23.1),
    ("gate and up", 43008, 5376, 60, 48.0),
    ("down", 5376, 21504, 60, 27.7),
    ("head", 262144, 5376, 1, 268.0),
]
MEASURED_BYTES = 0.578  # of a weight, as the GPU stores it: 17.75 GB over all products
MEASURED_STEP_MS = 8.79  # decode at an empty context
MEASURED_ATTENTION_MS = 0.36
MEASURED_REST_MS = 0.5  # small kernels, sampling, the graph's start
MEASURED_PREFILL_MS = {"linear": 170.0, "attention": 22.6, "rest": 18.0}  # a prompt of 2048, by its parts
# One all-reduce of few rows in a graph. Written straight into the others' memory (src/backend/cuda/peers.h): one way
# over NVLink and the polling. NCCL: 6 us was reported for 2 H100 with multicast (github.com/NVIDIA/nccl/issues/1259).
ASSUMED_PEERS_US = {1: 0.0, 2: 4.0, 4: 5.0, 8: 7.0}
ASSUMED_NCCL_US = {1: 0.0, 2: 7.0, 4: 9.0, 8: 12.0}
ASSUMED_BANDWIDTH = 300e9  # bytes a second each way between H100s of one NVLink host, of 450e9 by the data sheet
LAYERS, HIDDEN, VOCABULARY = 60, 5376, 262144
GPUS = [1, 2, 4, 8]


def fit():
    """Least squares of relative errors: microseconds of a product = a + bytes / b."""
    rows = [(r * c * MEASURED_BYTES, us) for _, r, c, _, us in MEASURED_PRODUCTS]
    # Minimise sum ((a + x k) / us - 1)^2 over a and k.
    s11 = sum(1 / us**2 for _, us in rows)
    s12 = sum(x / us**2 for x, us in rows)
    s22 = sum(x * x / us**2 for x, us in rows)
    t1, t2 = sum(1 / us for _, us in rows), sum(x / us for x, us in rows)
    determinant = s11 * s22 - s12 * s12
    return (t1 * s22 - t2 * s12) / determinant, (s11 * t2 - s12 * t1) / determinant


def products_ms(n, a, k):
    return sum(count * (a + k * r * c * MEASURED_BYTES / n) for _, r, c, count, _ in MEASURED_PRODUCTS) / 1e3


def all_reduce_us(n, rows, latency):
    return latency[n] + 2 * (n - 1) / n * rows * HIDDEN * 2 / ASSUMED_BANDWIDTH * 1e6


def decode_ms(n, latency=ASSUMED_PEERS_US):
    """Parts of a step of one row: products, all-reduce, gather of the logits, what does not shrink."""
    a, k = fit()
    # The chain of a step overlaps its kernels otherwise than single products do: scaled to the step as measured.
    chain = (MEASURED_STEP_MS - MEASURED_ATTENTION_MS - MEASURED_REST_MS) / products_ms(1, a, k)
    gather = 0 if n == 1 else ASSUMED_NCCL_US[n] / 1e3 + VOCABULARY * 4 * (n - 1) / n / ASSUMED_BANDWIDTH * 1e3
    return [chain * products_ms(n, a, k), 2 * LAYERS * all_reduce_us(n, 1, latency) / 1e3, gather,
            MEASURED_ATTENTION_MS + MEASURED_REST_MS]


def prefill_ms(n):
    """Parts of a prompt of 2048: what is split, all-reduce, what is not."""
    p = MEASURED_PREFILL_MS
    return [(p["linear"] + p["attention"]) / n, 2 * LAYERS * all_reduce_us(n, 2048, ASSUMED_NCCL_US) / 1e3,
            p["rest"]]


def memory_gb(n, context):
    """A card's bytes at int4: rank 0's, which has the tower."""
    layers = sum(r * c * count for _, r, c, count, _ in MEASURED_PRODUCTS[:-1]) * MEASURED_BYTES
    head = VOCABULARY * HIDDEN * MEASURED_BYTES
    embedding, tower, work = 1.41e9, 1.2e9, 1.0e9
    ring = 1024 + 2048  # window and chunk
    sliding = 50 * ring * 16 / min(n, 16) * 256 * 2 * 2
    full = 10 * context * 4 / min(n, 4) * 640 * 2
    return [x / 1e9 for x in (layers / n + head / n, embedding + tower + work, sliding + full)]


def main():
    a, k = fit()
    print(f"a product takes {a:.1f} us + bytes / {1e-6 / k:.2f} TB/s")
    for name, r, c, _, us in MEASURED_PRODUCTS:
        print(f"  {name:<14} measured {us:6.1f} us, fitted {a + k * r * c * MEASURED_BYTES:6.1f}")
    for title, cost in (("decode, 1 row", decode_ms), ("decode, 1 row, NCCL alone", lambda n: decode_ms(
            n, ASSUMED_NCCL_US)), ("prompt of 2048", prefill_ms)):
        print(title)
        for n in GPUS:
            parts = cost(n)
            print(f"  {n} GPUs: {sum(parts):7.2f} ms = " + " + ".join(f"{x:.2f}" for x in parts) +
                  f"; {sum(cost(1)) / sum(parts):.2f} times one GPU")
    for context in (131072, 262144):
        print(f"memory of a card, int4, {context} tokens")
        for n in GPUS:
            parts = memory_gb(n, context)
            print(f"  {n} GPUs: {sum(parts):5.1f} GB = " + " + ".join(f"{x:.1f}" for x in parts))
    draw(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images/scaling.png")


def draw(path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for axis, title, cost, labels in (
        (axes[0], "decode, one row, empty context", decode_ms,
         ["products", "all-reduce (assumed)", "logits (assumed)", "attention, small kernels"]),
        (axes[1], "prompt of 2048", prefill_ms, ["products, attention", "all-reduce (assumed)", "the rest"])):
        bottom = [0.0] * len(GPUS)
        for i, label in enumerate(labels):
            values = [cost(n)[i] for n in GPUS]
            assumed = "assumed" in label
            axis.bar([str(n) for n in GPUS], values, bottom=bottom, label=label, hatch="//" if assumed else None,
                     edgecolor="white")
            bottom = [b + v for b, v in zip(bottom, values)]
        for x, n in enumerate(GPUS):
            axis.text(x, bottom[x], f"×{sum(cost(1)) / bottom[x]:.2f}", ha="center", va="bottom", fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("GPUs")
        axis.set_ylabel("ms")
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
