#!/usr/bin/env python3
"""Writes tests/golden/torchao: weights of tests/golden/tiny as transformers saves them with TorchAoConfig, and what torchao
dequantises, in float32 (expected.safetensors, under the model's own names). A save is whole first; then all but a few
weights are dropped from it. Kept is also the line of the tied head, which has no tensor, and of the save in shards a
weight whose tensors lie in two of them. With --whole DIR MODEL KIND it writes the save of MODEL to DIR/saved and all of it
dequantised to DIR/float32, to compare with `gemma4 diff`.
Needs: pip install torch torchao transformers safetensors. Made with torchao 0.18, transformers 5.24, PyTorch 2.15."""
import argparse
import json
import pathlib
import shutil
import tempfile

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
from torchao.quantization.quant_primitives import dequantize_affine
from transformers import AutoModelForImageTextToText, TorchAoConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden"
KINDS = {"int8": lambda: Int8WeightOnlyConfig(), "int8_groups": lambda: Int8WeightOnlyConfig(granularity=PerGroup(16)),
         "int4": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16))}
LAYER = "model.language_model.layers.0."
KEPT = {LAYER + "self_attn.q_proj.weight", LAYER + "mlp.down_proj.weight", LAYER + "input_layernorm.weight", "lm_head.weight",
        "model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight"}


def save(source, kind, folder, shard):
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.bfloat16, device_map="cpu",
                                                        quantization_config=TorchAoConfig(KINDS[kind]()))
    model.save_pretrained(folder, max_shard_size=shard)


def read(folder):
    """Shard -> its tensors; and the metadata, which all shards have."""
    shards, metadata = {}, {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            shards[path.name] = {name: file.get_tensor(name) for name in file.keys()}
    return shards, metadata


def dequantised(shards, metadata):
    everything = {name: tensor for tensors in shards.values() for name, tensor in tensors.items()}
    weights, left = unflatten_tensor_state_dict(everything, metadata)
    assert not left
    return {name: (w if type(w) is torch.Tensor else in_float32(w)).float().contiguous() for name, w in weights.items()}


def in_float32(w):  # as its dequantize(), which rounds to the model's type
    return dequantize_affine(w.qdata, w.block_size, w.scale, w.zero_point, torch.int8, output_dtype=torch.float32)


def parts_of(name, shards):
    stem, last = name.rsplit(".", 1)
    return {part: shard for shard, tensors in shards.items() for part in tensors
            if part == name or part.startswith(f"{stem}._{last}_")}


def sample(kind):
    folder = ROOT / "torchao" / kind
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        saved = pathlib.Path(scratch)
        save(ROOT / "tiny", kind, saved, "400KB" if kind == "int8_groups" else "1GB")
        shards, metadata = read(saved)
        names = json.loads(metadata["tensor_names"])
        split = [name for name in names if len(set(parts_of(name, shards).values())) == 2]
        kept = [name for name in names if name in KEPT or name in split[:1]]
        print(kind, len(shards), "shards; in two of them:", split)
        expected = {k: v for k, v in dequantised(shards, metadata).items() if k in kept}
        where = {part: shard for name in kept for part, shard in parts_of(name, shards).items()}
        metadata = {**{name: metadata[name] for name in kept}, "format": "pt", "tensor_names": json.dumps(kept)}
        folder.mkdir(parents=True)
        for shard in sorted(set(where.values())):
            save_file({part: shards[shard][part] for part in where if where[part] == shard}, folder / shard, metadata)
        if len(shards) > 1:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=1))
        shutil.copy(saved / "config.json", folder)
    own = {name.removeprefix("model.").removeprefix("language_model.").replace(".linear.", "."): w for name, w in expected.items()}
    save_file(own, folder / "expected.safetensors")


def whole(folder, source, kind):
    save(source, kind, folder / "saved", "3MB")
    shards, metadata = read(folder / "saved")
    (folder / "float32").mkdir()
    save_file(dequantised(shards, metadata), folder / "float32/model.safetensors")
    for file in source.iterdir():
        if file.suffix == ".json" and not file.name.startswith("model"):
            shutil.copy(file, folder / "float32")
            if file.name != "config.json":
                shutil.copy(file, folder / "saved")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", nargs=3, metavar=("DIR", "MODEL", "KIND"))
    args = parser.parse_args()
    if args.whole:
        whole(pathlib.Path(args.whole[0]), pathlib.Path(args.whole[1]), args.whole[2])
    else:
        for each in KINDS:
            sample(each)
