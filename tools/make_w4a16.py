#!/usr/bin/env python3
"""Writes a compressed-tensors w4a16 directory (pack-quantized, 4 bits) of a Hugging Face directory, with the
compressed-tensors package itself: its scales and zero points, its codes, its packing, its quantization_config.

  pip install torch compressed-tensors accelerate safetensors
  tools/make_w4a16.py SOURCE OUTPUT [--group 32|128|...] [--asymmetric] [--values DIR]
  gemma4 diff DIR OUTPUT        # must print "equal": the package's values and ours

The text model's linear layers are quantised, like in llm-compressor's recipes for Gemma. The embedding (which is also the
head) and the vision tower are kept. --values DIR also writes the values that the package decompresses, in float32."""
import argparse
import json
import pathlib
import shutil

import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

SIDE_FILES = ["generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
              "chat_template.jinja"]


def is_quantised(name):
    return ".layers." in name and "vision_tower" not in name and name.endswith("_proj.weight")


def compress(weight, scheme):
    rows, cols = weight.shape
    groups = weight.float().reshape(rows, cols // scheme.weights.group_size, scheme.weights.group_size)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
    state = {"weight": weight, "weight_scale": scale.to(weight.dtype), "weight_zero_point": zero.to(torch.int8)}
    return PackedQuantizationCompressor.compress(state, scheme)


def values(state, scheme):
    # In float32: with the scales' own type the package rounds every product to it.
    return PackedQuantizationCompressor.decompress({**state, "weight_scale": state["weight_scale"].float()},
                                                   scheme)["weight"]


def write(directory, source, tensors, config):
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    for name in SIDE_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--values", type=pathlib.Path)
    args = parser.parse_args()
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=not args.asymmetric, strategy="group",
                               group_size=args.group)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, format="pack-quantized")
    tensors, plain = {}, {}
    for file in sorted(args.source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if not is_quantised(name):
                tensors[name] = plain[name] = tensor
                continue
            state = compress(tensor, scheme)
            plain[name] = values(state, scheme)
            for part, value in state.items():
                tensors[name.removesuffix("weight") + part] = value
    config = json.loads((args.source / "config.json").read_text())
    if args.values:
        write(args.values, args.source, plain, config)
    quantisation = QuantizationConfig(config_groups={"group_0": scheme}, format="pack-quantized",
                                      quantization_status="compressed",
                                      ignore=["lm_head", "re:.*vision_tower.*", "re:.*embed_vision.*"])
    config["quantization_config"] = json.loads(quantisation.model_dump_json())
    write(args.output, args.source, tensors, config)


if __name__ == "__main__":
    main()
