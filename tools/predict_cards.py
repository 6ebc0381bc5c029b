#!/usr/bin/env python3
"""Predicts the time of a decode step of one row of the 31B on GPUs that were not at hand, and shows the model's error on
the H200 under each profile (GEMMA4_CUDA_PROFILE). Prints the two tables of docs/cuda/cards.md.

The model has three measured constants:
  step = bytes / R + waits * max(0, W - ring * SMs / R),   R = min(copy bandwidth, SMs * RATE)
A layer waits four times for values of other CTAs (docs/cuda/design.md): W, the same everywhere. Memory goes on meanwhile until
the stages of shared memory (ring) are full. RATE is what an SM gets with so many bytes in flight as the kernel keeps: it binds
only where memory is faster than that. Computing does not bind: a stage of 18,944 bytes takes 8 warps 138 instructions each,
276 cycles of an SM's four schedulers, and arrives in 1,000 cycles on an H200, later on the cards below.
"""
STAGE = 20736  # bytes of shared memory; 18,944 of weights
BYTES = 17.75e9  # that a step of the 31B reads, int4 in groups of 32
WAITS = 4 * 60
W = 7.9e-6  # seconds
RATE = {"cp.async": 26.5e9, "bulk": 31.5e9}  # bytes a second of an SM: 3 and 2 stages in flight; bulk: at least
STAGES = {"sm80": 5, "sm86": 3, "sm89": 3, "sm90": 9, "sm100": 9, "sm120": 3}

H200_COPY = 4.144e12
MEASURED = [  # profile, SMs, ms of a step on one H200
    ("sm90", 132, 4.87), ("sm80", 132, 6.10), ("sm89", 132, 6.52), ("sm120", 132, 5.60),
    ("sm86", 82, 9.52), ("sm80", 108, 7.12), ("sm89", 128, 6.63)]

# Name, profile, SMs, GB/s of memory: NVIDIA's data sheets and architecture papers. Copies reach about 90 % of it (89 % on an
# H100, 87 % on an H200, measured).
CARDS = [("RTX 3090", "sm86", 82, 936), ("RTX 4090", "sm89", 128, 1008), ("L40S", "sm89", 142, 864), ("A100 80 GB", "sm80", 108, 2039),
         ("RTX 5090", "sm120", 170, 1792), ("B200", "sm100", 148, 8000)]
COPY_SHARE = 0.9


def step(profile, sms, copy):
    kind = "cp.async" if profile in ("sm80", "sm86", "sm89") else "bulk"
    rate = min(copy, sms * RATE[kind])
    ring = STAGES[profile] * STAGE
    return BYTES / rate + WAITS * max(0, W - ring * sms / rate)


def main():
    print("| H200 as | measured | predicted | error |\n|---|---|---|---|")
    for profile, sms, ms in MEASURED:
        predicted = step(profile, sms, H200_COPY) * 1e3
        name = profile if sms == 132 else f"{profile}:{sms}"
        print(f"| {name} | {ms:.2f} ms | {predicted:.2f} ms | {100 * (predicted / ms - 1):+.1f} % |")
    print("\n| card | profile | SMs | copy, assumed | step | tokens a second | of copy |\n|---|---|---|---|---|---|---|")
    for name, profile, sms, memory in CARDS:
        copy = memory * 1e9 * COPY_SHARE
        time = step(profile, sms, copy)
        print(f"| {name} | {profile} | {sms} | {copy / 1e9:.0f} GB/s | {time * 1e3:.1f} ms | {1 / time:.0f} | {100 * BYTES / copy / time:.0f} % |")


if __name__ == "__main__":
    main()
