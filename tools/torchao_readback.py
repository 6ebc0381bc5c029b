#!/usr/bin/env python3
"""Reads a checkpoint that `gemma4 quantize` wrote with torchao's own loader, and quantises the source with torchao too.

    torchao_readback.py QUANTISED [SOURCE]

Needs torch, torchao 0.17 and safetensors. Prints what it compared; exits 1 if something differs.
 1. unflatten_tensor_state_dict() must take every tensor and leave none over; each subclass must have the type, shape
    and block size that the metadata says, and dequantise to finite numbers.
 2. Flattened again by torchao, tensors and metadata must equal the file's.
 3. With SOURCE (the Hugging Face directory it was made from), each int4 and int8 weight is quantised again by torchao's
    primitives: min-max on the CPU, and HQQ as the original does it (float16 on a GPU, float32 without one).
"""
import json
import pathlib
import sys

import torch
from safetensors import safe_open
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization.quant_primitives import (MappingType, _choose_qparams_and_quantize_affine_hqq,
                                                   choose_qparams_affine, quantize_affine)


def load(path):
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def dequantise(weight):
    group = weight.block_size[-1]
    if type(weight).__name__ == "Int4Tensor":
        codes = torch.stack([weight.qdata & 15, weight.qdata >> 4], dim=-1).reshape(weight.shape).float()
        scale, zero = weight.scale.t().float(), weight.zero_point.t().float()
    else:
        codes, scale, zero = weight.qdata.float(), weight.scale.float(), weight.zero_point.float()
    return (codes - zero.repeat_interleave(group, -1)) * scale.repeat_interleave(group, -1)


def read_back(directory):
    tensors, metadata = load(directory / "model.safetensors")
    state, left = unflatten_tensor_state_dict(tensors, metadata)
    names = json.loads(metadata["tensor_names"])
    assert not left, f"torchao left over {sorted(left)}"
    assert list(state) == names, "torchao read other names than tensor_names lists"
    kinds = {}
    for name, weight in state.items():
        kind = type(weight).__name__
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind != "Tensor":
            assert torch.isfinite(dequantise(weight)).all(), name
    print(f"torchao read {len(state)} tensors: {kinds}")
    again, metadata_again = flatten_tensor_state_dict(state)
    assert metadata_again == metadata, "metadata differs after a round trip"
    assert set(again) == set(tensors) and all(torch.equal(again[k], tensors[k]) for k in tensors)
    print("flattened again by torchao: all tensors and all metadata equal")
    return state


def find_source(directory):
    files = sorted(directory.glob("*.safetensors"))
    weights = {}
    for file in files:
        for key, value in load(file)[0].items():
            weights[key.removeprefix("model.").removeprefix("language_model.")] = value
    weights.setdefault("lm_head.weight", weights["embed_tokens.weight"])
    return weights


def min_max(weight, group, bits):
    symmetric = bits == 8
    low, high = (-128, 127) if symmetric else (0, 15)
    mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    zero_type = torch.int8 if symmetric else torch.bfloat16
    scale, zero = choose_qparams_affine(weight.float(), mapping, (1, group), target_dtype=torch.int8, quant_min=low,
                                        quant_max=high, scale_dtype=torch.bfloat16, zero_point_dtype=zero_type)
    codes = quantize_affine(weight.float(), (1, group), scale, zero, output_dtype=torch.int8, quant_min=low,
                            quant_max=high)
    return codes, scale.reshape(weight.shape[0], -1), zero.reshape(weight.shape[0], -1)


def hqq(weight, group):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    codes, scale, zero, _ = _choose_qparams_and_quantize_affine_hqq(
        weight.to(device), nbits=4, group_size=group, axis=1, compute_dtype=torch.bfloat16, device=device,
        raw_output=True)
    rows = weight.shape[0]
    return (codes.to(torch.int8).cpu().reshape(weight.shape), scale.to(torch.bfloat16).cpu().reshape(rows, -1),
            zero.to(torch.bfloat16).cpu().reshape(rows, -1))


def quantise_again(state, source):
    counts = {}
    for name, ours in state.items():
        kind = type(ours).__name__
        if kind == "Tensor":
            continue
        weight, group = source[name], ours.block_size[-1]
        if kind == "Int4Tensor":
            codes = torch.stack([ours.qdata & 15, ours.qdata >> 4], dim=-1).reshape(ours.shape).to(torch.int8)
            scale, zero = ours.scale.t(), ours.zero_point.t()
            how = "int4 min_max" if bool((zero == zero.round()).all()) else "int4 hqq"
            theirs = min_max(weight, group, 4) if how == "int4 min_max" else hqq(weight, group)
        else:
            how, codes, scale, zero = "int8 min_max", ours.qdata, ours.scale, ours.zero_point
            theirs = min_max(weight, group, 8)
        row = counts.setdefault(how, [0] * 6)
        for i, (a, b) in enumerate(zip((codes, scale, zero), theirs)):
            row[2 * i] += int((a != b).sum())
            row[2 * i + 1] += a.numel()
    for how, row in counts.items():
        print(f"{how}: codes {row[0]} of {row[1]} differ, scales {row[2]} of {row[3]}, zeros {row[4]} of {row[5]}")
    return all(sum(row[::2]) == 0 for row in counts.values())


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    state = read_back(pathlib.Path(sys.argv[1]))
    if len(sys.argv) == 3 and not quantise_again(state, find_source(pathlib.Path(sys.argv[2]))):
        sys.exit(1)


if __name__ == "__main__":
    main()
