#!/usr/bin/env python3
"""Writes a GPTQ, AWQ or AutoRound directory of a Hugging Face directory, packed by the programs themselves: GPTQModel's
TorchLinear (gptq, gptq_v2), AutoRound's QuantLinear and WQLinear_GEMM (auto-round, auto-round-gptq, auto-round-awq, awq).
Codes are rounded to the nearest: what is checked is the layout, not how well a program quantises.

  pip install torch transformers gptqmodel auto-round safetensors
  tools/make_gptq.py SOURCE OUTPUT --layout gptq|gptq_v2|awq|auto-round|auto-round-gptq|auto-round-awq
                     [--bits 4|8] [--group 128] [--symmetric] [--act-order] [--shards] [--values DIR]
  gemma4 diff DIR OUTPUT        # "equal" where the matrices become int4 or int8

The text model's linear layers are quantised; embedding and vision tower are kept. --act-order assigns columns to groups
in a random order, as desc_act does. --values DIR also writes what the program's own code dequantises, in float32."""
import argparse
import json
import pathlib
import shutil

import torch
from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm
from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module
from safetensors.torch import load_file, save_file

SIDE_FILES = ["generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
              "chat_template.jinja"]
AUTO_ROUND = {"auto-round": "auto_round", "auto-round-gptq": "auto_round:auto_gptq",
              "auto-round-awq": "auto_round:auto_awq"}


def is_quantised(name):
    return ".layers." in name and "vision_tower" not in name and name.endswith("_proj.weight")


def settings(weight, bits, group, symmetric, g_idx):
    """Scales (float16 values) and zero points, [rows, groups], of min-max quantisation."""
    rows, groups = weight.shape[0], int(g_idx.max()) + 1
    scale, zero = torch.zeros(rows, groups), torch.zeros(rows, groups)
    top = 2**bits - 1
    for g in range(groups):
        part = weight[:, g_idx == g].float()
        if symmetric:
            s = part.abs().amax(1) * 2 / top
            z = torch.full((rows,), float(2**(bits - 1)))
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            s = (high - low) / top
            z = torch.round(-low / s)
        scale[:, g], zero[:, g] = s.half().float(), z.clamp(0, top)
    return scale, zero


def linear_of(weight):
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.float()
    return linear


def gptq_module(weight, scale, zero, g_idx, args):
    module = TorchLinear(bits=args.bits, group_size=args.group, sym=args.symmetric, desc_act=args.act_order,
                         in_features=weight.shape[1], out_features=weight.shape[0], bias=False,
                         pack_dtype=torch.int32)
    module.pack_original(linear_of(weight), scale, zero, g_idx.to(torch.int32))
    if args.layout == "gptq":
        convert_gptq_v2_to_v1_format_module(module, QuantizeConfig(bits=args.bits))
    parts = {p: getattr(module, p).clone().contiguous() for p in ("qweight", "qzeros", "scales", "g_idx")}
    if args.layout == "gptq":
        convert_gptq_v1_to_v2_format_module(module, args.bits, torch.int32)
    module.post_init()
    module.scales.data = module.scales.data.float()
    return parts, module.dequantize_weight().T


def auto_round_module(weight, scale, zero, args):
    package = qlinear_torch_zp if args.layout == "auto-round-gptq" else qlinear_torch
    module = package.QuantLinear(args.bits, args.group, weight.shape[1], weight.shape[0], False)
    module.device = "cpu"
    module.pack(linear_of(weight), scale, int(zero[0, 0]) if args.symmetric else zero, None, device="cpu")
    parts = {p: getattr(module, p).clone().contiguous() for p in ("qweight", "qzeros", "scales")}
    module.scales.data = module.scales.data.float()
    return parts, module(torch.eye(weight.shape[1])).T  # the product with the identity is the weight


def awq_module(weight, scale, zero, args):
    group = args.group if args.group > 0 else weight.shape[1]
    clamped = linear_of(weight)  # WQLinear_GEMM does not clamp: a code of 16 would run into its neighbour
    wide_scale, wide_zero = scale.repeat_interleave(group, 1), zero.repeat_interleave(group, 1)
    codes = torch.round(clamped.weight.data / wide_scale + wide_zero).clamp(0, 15)
    clamped.weight.data = (codes - wide_zero) * wide_scale
    module = WQLinear_GEMM.from_linear(clamped, 4, group, scales=scale.T.contiguous(), zeros=zero.T.contiguous(),
                                       device="cpu")
    parts = {p: getattr(module, p).clone().contiguous() for p in ("qweight", "qzeros", "scales")}
    return parts, dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"].float(), 4, group).T


def quantise(weight, args):
    cols = weight.shape[1]
    group = args.group if args.group > 0 else cols
    g_idx = torch.arange(cols) // group
    if args.act_order:
        g_idx = g_idx[torch.randperm(cols, generator=torch.Generator().manual_seed(cols))]
    scale, zero = settings(weight, args.bits, group, args.symmetric, g_idx)
    if args.layout.startswith("gptq"):
        return gptq_module(weight, scale, zero, g_idx, args)
    return awq_module(weight, scale, zero, args) if "awq" in args.layout else auto_round_module(weight, scale, zero, args)


def config_of(args):
    common = {"bits": args.bits, "group_size": args.group, "sym": args.symmetric}
    if args.layout.startswith("gptq"):
        return common | {"quant_method": "gptq", "checkpoint_format": args.layout, "desc_act": args.act_order,
                         "lm_head": False, "pack_dtype": "int32"}
    if args.layout == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": args.group, "version": "gemm", "zero_point": True,
                "modules_to_not_convert": ["vision_tower", "embed_vision"]}
    return common | {"quant_method": "auto-round", "packing_format": AUTO_ROUND[args.layout], "data_type": "int",
                     "autoround_version": "0.16.1"}


def write(directory, source, tensors, config, shards=False):
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    files = [names[:len(names) // 2], names[len(names) // 2:]] if shards else [names]
    where = {}
    for i, part in enumerate(files):
        file = f"model-{i + 1:05}-of-{len(files):05}.safetensors" if shards else "model.safetensors"
        save_file({name: tensors[name].contiguous() for name in part}, directory / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    if shards:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    for name in SIDE_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--layout", choices=["gptq", "gptq_v2", "awq", *AUTO_ROUND], required=True)
    parser.add_argument("--bits", type=int, choices=[4, 8], default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--shards", action="store_true")
    parser.add_argument("--values", type=pathlib.Path)
    args = parser.parse_args()
    tensors, plain = {}, {}
    for file in sorted(args.source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if not is_quantised(name):
                tensors[name] = plain[name] = tensor
                continue
            parts, plain[name] = quantise(tensor, args)
            for part, value in parts.items():
                tensors[name.removesuffix("weight") + part] = value
    config = json.loads((args.source / "config.json").read_text())
    if args.values:
        write(args.values, args.source, plain, config)
    config["quantization_config"] = config_of(args)
    write(args.output, args.source, tensors, config, args.shards)


if __name__ == "__main__":
    with torch.no_grad():
        main()
