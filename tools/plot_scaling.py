#!/usr/bin/env python3
"""The cost model of docs/SCALING.md: prints its tables and draws docs/images/scaling.png (needs matplotlib).

    plot_scaling.py [OUTPUT.png]

MEASURED is what `gemma4 bench --gpus N` printed on one host with four H200: replace it by what tools/multi_gpu_check.sh
prints on yours.
"""
import argparse
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Milliseconds of the synthetic 31B, int4 in groups of 32, by GPUs; the mean of three runs of each (decode) and of two.
MEASURED = {
    "decode, one row, empty context": {1: 5.18, 2: 3.48, 4: 2.93},
    "prompt of 2048": {1: 225.1, 2: 129.4, 4: 75.1},
}
GPUS = [1, 2, 4, 8]
# 31B: rows, columns, how often in a step.
PRODUCTS = [(16384, 5376, 50), (18432, 5376, 10), (5376, 8192, 50), (5376, 16384, 10), (43008, 5376, 60),
            (5376, 21504, 60), (262144, 5376, 1)]
STORED_BYTES = 0.578  # of a weight, as the GPU stores it: 17.75 GB over all products
VOCABULARY, HIDDEN = 262144, 5376


def solve(rows, right):
    """Gauss-Jordan elimination of a small square system."""
    n = len(right)
    m = [list(row) + [r] for row, r in zip(rows, right)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(m[r][i]))
        m[i], m[pivot] = m[pivot], m[i]
        m[i] = [x / m[i][i] for x in m[i]]
        for r in range(n):
            if r != i:
                m[r] = [a - m[r][i] * b for a, b in zip(m[r], m[i])]
    return [row[n] for row in m]


def fit(times, terms):
    """Least squares of relative errors: t(N) = sum of coefficient * term(N)."""
    rows = [[f(n) / t for f in terms] for n, t in times.items()]
    normal = [[sum(r[i] * r[j] for r in rows) for j in range(len(terms))] for i in range(len(terms))]
    return solve(normal, [sum(r[i] for r in rows) for i in range(len(terms))])


# What each part of a time does as N grows, and what it is called.
MODELS = {
    "decode, one row, empty context": [
        (lambda n: 1 / n, "weights, shared out"),
        (lambda n: 1.0, "waits and small work of one GPU"),
        (lambda n: n - 1.0, "the other GPUs' values"),
    ],
    "prompt of 2048": [
        (lambda n: 1 / n, "products and attention, shared out"),
        (lambda n: 1.0, "norms, sums over the GPUs"),
    ],
}


def parts(what, n):
    terms = MODELS[what]
    return [c * f(n) for c, (f, _) in zip(fit(MEASURED[what], [f for f, _ in terms]), terms)]


def memory_gb(n, context):
    """A card's bytes at int4: rank 0's, which has the tower."""
    layers = sum(r * c * count for r, c, count in PRODUCTS) * STORED_BYTES
    embedding, tower, work = 1.41e9, 1.2e9, 1.0e9
    ring = 1024 + 2048  # window and chunk
    sliding = 50 * ring * 16 / min(n, 16) * 256 * 2 * 2
    full = 10 * context * 4 / min(n, 4) * 640 * 2
    return [x / 1e9 for x in (layers / n, embedding + tower + work, sliding + full)]


def main():
    for what, times in MEASURED.items():
        print(what)
        for n in GPUS:
            p = parts(what, n)
            seen = f"measured {times[n]:.2f} ms, {times[1] / times[n]:.2f} times one; " if n in times else ""
            print(f"  {n} GPUs: {seen}model {sum(p):.2f} = " + " + ".join(f"{x:.2f}" for x in p))
    for context in (131072, 262144):
        print(f"memory of a card, int4, {context} tokens")
        for n in GPUS:
            p = memory_gb(n, context)
            print(f"  {n} GPUs: {sum(p):5.1f} GB = " + " + ".join(f"{x:.1f}" for x in p))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=pathlib.Path, default=ROOT / "docs/images/scaling.png")
    draw(parser.parse_args().output)


def draw(path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for axis, (what, times) in zip(axes, MEASURED.items()):
        bottom = [0.0] * len(GPUS)
        for i, (_, label) in enumerate(MODELS[what]):
            values = [parts(what, n)[i] for n in GPUS]
            bars = axis.bar([str(n) for n in GPUS], values, bottom=bottom, label=label, edgecolor="white")
            for bar, n in zip(bars, GPUS):
                bar.set_alpha(1 if n in times else 0.4)
            bottom = [b + v for b, v in zip(bottom, values)]
        axis.plot([str(n) for n in times], list(times.values()), "ko", markersize=5, label="measured")
        for x, n in enumerate(GPUS):
            total = times.get(n, bottom[x])
            note = f"×{times[1] / total:.2f}" + ("" if n in times else "\nby the model")
            axis.text(x, max(total, bottom[x]) * 1.03, note, ha="center", va="bottom", fontsize=9)
        axis.set_title(what, fontsize=10)
        axis.set_xlabel("GPUs (H200)")
        axis.set_ylabel("ms")
        axis.set_ylim(0, 1.25 * max(times.values()))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
