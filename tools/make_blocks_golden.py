#!/usr/bin/env python3
"""Writes tests/golden/blocks: for each ggml block format four blocks (NAME.blocks) and the values that the gguf package
unpacks from them (NAME.f32). Needs: pip install gguf numpy. Run once; the results are committed."""
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/blocks"
# Where the float16 fields of a block lie; every other byte may hold anything.
HALVES = {Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0], Type.Q2_K: [80, 82],
          Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}
HALVES |= {Type.IQ2_XXS: [0], Type.IQ2_XS: [0], Type.IQ2_S: [0], Type.IQ3_XXS: [0], Type.IQ3_S: [0], Type.IQ1_S: [0],
           Type.IQ1_M: [], Type.IQ4_NL: [0], Type.IQ4_XS: [0], Type.TQ1_0: [52], Type.TQ2_0: [64], Type.MXFP4: [],
           Type.NVFP4: []}
BLOCKS = 4

if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    for kind, halves in HALVES.items():
        size = gguf.GGML_QUANT_SIZES[kind][1]
        blocks = random.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        for at in halves:
            values = random.uniform(-0.2, 0.2, BLOCKS).astype("<f2")
            blocks[:, at:at + 2] = values.view(np.uint8).reshape(BLOCKS, 2)
        if kind == Type.IQ1_M:  # the float16 lies in the highest bits of four words: keep it finite
            blocks[:, 55] &= 0x3f
        if kind == Type.MXFP4:  # powers of two that float32 has
            blocks[:, 0] = [0, 1, 2, 127]
        floats = gguf.quants.dequantize(blocks, kind).astype("<f4")
        (OUT / f"{kind.name.lower()}.blocks").write_bytes(blocks.tobytes())
        (OUT / f"{kind.name.lower()}.f32").write_bytes(floats.tobytes())
        print(kind.name, size, floats.shape)
