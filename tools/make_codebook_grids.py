#!/usr/bin/env python3
"""Writes src/quant/codebook_grids.h: the tables of ggml's IQ types, read from the gguf package (pip install gguf).

A table's row is one entry of the format: 4 or 8 values, each an index into a short list of magnitudes. The file packs
each row into one number, 2 or 3 bits a value, lowest first.
"""
import sys

import numpy as np
from gguf import quants

TABLES = {"Iq1": (quants.IQ1_S, 2), "Iq2Xxs": (quants.IQ2_XXS, 2), "Iq2Xs": (quants.IQ2_XS, 2),
          "Iq2S": (quants.IQ2_S, 2), "Iq3Xxs": (quants.IQ3_XXS, 3), "Iq3S": (quants.IQ3_S, 3)}


HEAD = """// The tables of ggml's IQ types, which define these formats: row i is what code i stands for. Values are indices into
// a list of magnitudes (codebook.cc), 2 bits each (Iq3*: 3), lowest first. Made by tools/make_codebook_grids.py.
#pragma once

#include <cstdint>

namespace gemma4 {

"""


def rows(table, bits):
    table.init_grid()
    grid = table.grid.reshape(table.grid_shape).astype(int)
    index = {int(value): i for i, value in enumerate(table.grid_map)}
    return [sum(index[int(v)] << bits * i for i, v in enumerate(row)) for row in grid]


def main():
    print(HEAD, end="")
    for name, (table, bits) in TABLES.items():
        values = rows(table, bits)
        print(f"constexpr uint16_t k{name}Grid[{len(values)}] = {{")
        for i in range(0, len(values), 16):
            print("    " + " ".join(f"{v}," for v in values[i:i + 16]))
        print("};")
    print("\n}  // namespace gemma4")


if __name__ == "__main__":
    sys.exit(main())
