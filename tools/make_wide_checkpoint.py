#!/usr/bin/env python3
"""Writes a Hugging Face directory with google/gemma-4-31B-it's widths and fewer layers, to measure memory and time.

    make_wide_checkpoint.py OUTPUT [LAYERS]

The weights are zeros in a sparse file: it takes no disk space, and it is read as fast as a cached file. Names and
shapes come from tests/golden/config_31b; LAYERS (12) keeps the first ones, with every sixth a full-attention layer.
"""
import json
import pathlib
import re
import shutil
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    output = pathlib.Path(sys.argv[1])
    layers = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    golden = ROOT / "tests/golden/config_31b"
    config = json.loads((golden / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = layers
    config["text_config"]["layer_types"] = config["text_config"]["layer_types"][:layers]
    header, offset = {}, 0
    for name, shape in sorted(json.loads((golden / "tensors.json").read_text()).items()):
        layer = re.match(r"model\.language_model\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= layers:
            continue
        size = 2
        for dim in shape:
            size *= dim
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    (output / "config.json").write_text(json.dumps(config, indent=1))
    shutil.copy(golden / "generation_config.json", output)
    shutil.copy(ROOT / "models/demo/tokenizer.json", output)
    print(f"{output}: {layers} layers, {offset / 1e9:.2f} GB; the largest tensor has {262144 * 5376 * 2 / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
