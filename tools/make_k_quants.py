#!/usr/bin/env python3
"""Quantises the matrices of a GGUF file of floats with llama.cpp's own quantiser, like llama-quantize.

  pip install gguf xllamacpp && tools/make_k_quants.py BF16.gguf OUT.gguf TYPE        (TYPE: Q2_K ... Q6_K, Q4_K_M, IQ*, TQ*, MXFP4)

The quantiser is ggml_quantize_chunk() of the library inside xllamacpp. The embedding, which is also the head, is always
Q6_K, as in llama-quantize if they are tied. Q4_K_M is the usual mixture: v_proj and down_proj are Q6_K in the first and the
last eighth of the layers and in every third layer between. Vectors are kept; metadata is copied."""
import argparse
import ctypes
import pathlib
import re
import struct

import gguf
import numpy as np
import xllamacpp

Type = gguf.GGMLQuantizationType


def library():
    lib = ctypes.CDLL(next(str(p) for p in pathlib.Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                        ctypes.c_int64, ctypes.c_void_p]
    return lib


def type_of(name, wanted, layers):
    if name in ("token_embd.weight", "output.weight"):
        return Type.Q6_K
    if wanted != "Q4_K_M":
        return Type[wanted]
    layer = int(re.search(r"blk\.(\d+)\.", name).group(1))
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return Type.Q6_K if more and re.search(r"attn_v|ffn_down", name) else Type.Q4_K


def floats(tensor):
    if tensor.tensor_type == Type.BF16:
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return tensor.data.astype(np.float32)


def quantise(lib, tensor, kind):
    rows = np.ascontiguousarray(floats(tensor))
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if rows.shape[-1] % block:
        raise SystemExit(f"{tensor.name}: rows of {rows.shape[-1]} are not whole blocks of {block}")
    out = np.empty(rows.size // block * size, np.uint8)
    importance = np.ones(rows.shape[-1], np.float32)  # the smallest IQ types need a weight for each column
    made = lib.ggml_quantize_chunk(int(kind), rows.ctypes.data, out.ctypes.data, 0, rows.size // rows.shape[-1],
                                   rows.shape[-1], importance.ctypes.data if kind.name.startswith("IQ") else None)
    assert made == out.size
    return out.tobytes()


def padded(data):
    return data + bytes(-len(data) % 32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("output")
    parser.add_argument("type", choices=["Q2_K", "Q3_K", "Q4_K", "Q4_K_M", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS",
                                        "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"])
    args = parser.parse_args()
    lib, reader = library(), gguf.GGUFReader(args.source)
    layers = int(reader.fields["gemma4.block_count"].contents())
    described, data = b"", b""
    for tensor in reader.tensors:
        matrix = len(tensor.shape) > 1
        kind = type_of(tensor.name, args.type, layers) if matrix else tensor.tensor_type
        name = tensor.name.encode()
        described += struct.pack(f"<Q{len(name)}sI", len(name), name, len(tensor.shape))
        described += struct.pack(f"<{len(tensor.shape)}QIQ", *(int(n) for n in tensor.shape), int(kind), len(data))
        data += padded(quantise(lib, tensor, kind) if matrix else tensor.data.tobytes())
    head = reader.data[:reader.tensors[0].field.offset].tobytes()  # version, counts and metadata as they are
    pathlib.Path(args.output).write_bytes(padded(head + described) + data)


if __name__ == "__main__":
    main()
