#!/usr/bin/env python3
"""Compares two files of logits (`gemma4 bench --dump`, `gemma4 eval --dump`).

    compare_logits.py REFERENCE OTHER [--kl LIMIT]

Prints for each tensor the largest difference of a logit, the largest KL divergence of a row (reference to other, in
nats) and in how many rows the most likely token is the same. Exits 1 if a KL divergence is above LIMIT.
"""
import argparse
import array
import json
import math
import struct
import sys


def tensors(path):
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        base = 8 + length
        for name, entry in sorted(header.items()):
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            file.seek(base + begin)
            values = array.array("f")
            values.frombytes(file.read(end - begin))
            yield name, entry["shape"][-1], values


def log_sum(row):
    top = max(row)
    return top + math.log(math.fsum(math.exp(x - top) for x in row))


def compare(a, b):
    """Largest difference, KL divergence, whether the best token is the same."""
    za, zb = log_sum(a), log_sum(b)
    kl = math.fsum(math.exp(x - za) * ((x - za) - (y - zb)) for x, y in zip(a, b))
    return max(abs(x - y) for x, y in zip(a, b)), max(kl, 0), max(range(len(a)), key=a.__getitem__) == max(
        range(len(b)), key=b.__getitem__)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("other")
    parser.add_argument("--kl", type=float, default=math.inf)
    arguments = parser.parse_args()
    others = {name: (width, values) for name, width, values in tensors(arguments.other)}
    good = True
    for name, width, values in tensors(arguments.reference):
        if name not in others or len(others[name][1]) != len(values):
            sys.exit(f"{arguments.other} has no {name} of the same size")
        rows = [compare(values[i:i + width], others[name][1][i:i + width]) for i in range(0, len(values), width)]
        difference, kl, same = max(r[0] for r in rows), max(r[1] for r in rows), sum(r[2] for r in rows)
        wrong = not kl <= arguments.kl  # NaN is wrong too
        good = good and not wrong
        print(f"{name:<16} max |difference| {difference:.2e}  KL {kl:.2e}  best token {same}/{len(rows)}"
              f"{'  TOO FAR' if wrong else ''}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
