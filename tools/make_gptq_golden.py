#!/usr/bin/env python3
"""Writes tests/golden/gptq: small weights packed by GPTQModel and AutoRound (tools/make_gptq.py), and what these programs
dequantise. For each NAME: NAME.safetensors, NAME.json (its quantization_config), NAME.expected.safetensors (float32).
Needs what tools/make_gptq.py needs. Run once; the results are committed."""
import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

import make_gptq

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/gptq"
HF = "model.language_model.layers.0."


class Case:
    def __init__(self, name, layout, group, **extra):
        self.name, self.tensors, self.expected, self.dynamic = name, {}, {}, {}
        self.args = argparse.Namespace(layout=layout, group=group, bits=4, symmetric=False, act_order=False)
        self.extra = extra

    def add(self, module, cols, shift=0.0, **own):
        """`shift`: moves the weights, so that some zero points are at the ends (0 where all are positive)."""
        args = argparse.Namespace(**(vars(self.args) | own))
        generator = torch.Generator().manual_seed(len(self.tensors) + cols)
        rows = 32 if args.layout.startswith("auto") else 16  # AutoRound packs zero points of 32 rows at a time
        weight = torch.randn(rows, cols, generator=generator) * 0.05
        weight[::2] += shift
        parts, values = make_gptq.quantise(weight, args)
        for part, tensor in parts.items():
            self.tensors[HF + module + "." + part] = tensor
        self.expected["layers.0." + module + ".weight"] = values.float().contiguous()
        if args.bits != self.args.bits or args.group != self.args.group:
            self.dynamic[HF + module] = {"bits": args.bits, "group_size": args.group}

    def save(self):
        config = make_gptq.config_of(self.args) | self.extra
        if self.dynamic:
            gptq = self.args.layout.startswith("gptq")
            names = {("+:.*" + name.removeprefix(HF).replace(".", "\\.") if gptq else name): value
                     for name, value in self.dynamic.items()}
            config["dynamic" if gptq else "extra_config"] = names
        save_file(self.tensors, FOLDER / f"{self.name}.safetensors")
        save_file(self.expected, FOLDER / f"{self.name}.expected.safetensors")
        (FOLDER / f"{self.name}.json").write_text(json.dumps(config, indent=1) + "\n")


def main():
    FOLDER.mkdir(exist_ok=True)
    v1 = Case("gptq", "gptq", 32, desc_act=True)
    v1.add("self_attn.q_proj", 128, shift=0.3)
    v1.add("self_attn.k_proj", 96, symmetric=True)
    v1.add("self_attn.o_proj", 64, act_order=True)
    v1.add("mlp.up_proj", 128, bits=8, group=64, symmetric=True)
    v1.add("mlp.down_proj", 64, bits=8, shift=0.3)
    v2 = Case("gptq_v2", "gptq_v2", -1)
    v2.add("self_attn.q_proj", 96, shift=0.3)
    v2.add("self_attn.k_proj", 96, shift=-0.3)
    v2.add("mlp.up_proj", 128, group=64)
    v2.add("mlp.gate_proj", 64, bits=8)
    awq = Case("awq", "awq", 32)
    awq.add("self_attn.q_proj", 128, shift=0.3)
    awq.add("mlp.up_proj", 64, shift=-0.3)
    cases = [v1, v2, awq]
    for name in make_gptq.AUTO_ROUND:
        case = Case(name.replace("-", "_"), name, 32)
        case.add("self_attn.q_proj", 96, shift=0.3)
        case.add("self_attn.k_proj", 32, symmetric=True)
        if "awq" not in name:
            case.add("mlp.up_proj", 64, bits=8, symmetric=True)
        cases.append(case)
    for case in cases:
        case.save()


if __name__ == "__main__":
    with torch.no_grad():
        main()
