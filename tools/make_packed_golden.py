#!/usr/bin/env python3
"""Writes tests/golden/mlx, tests/golden/mlx_float and tests/golden/compressed_tensors: some weights of tests/golden/tiny quantised by the mlx
package, and packed like compressed-tensors' helpers.py; expected.safetensors has the dequantised values.
Needs: pip install "mlx[cpu]" numpy. Run once; the results are committed."""
import json
import pathlib
import struct

import mlx.core as mx
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden"
HF = "model.language_model.layers.0."


def read_bf16(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        raw = np.frombuffer(data, np.uint16, (end - begin) // 2, 8 + size + begin)
        out[name] = (raw.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return out


def to_bf16(a):
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(a):
    return (a.astype(np.uint32) << 16).view(np.float32)


def save(path, tensors):
    """tensors: name -> (type, array)"""
    header, blob = {}, b""
    for name, (kind, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(blob), len(blob) + len(raw)]}
        blob += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


def config_with(key, value):
    config = json.loads((ROOT / "tiny/config.json").read_text())
    config[key] = value
    return json.dumps(config, indent=1)


def mlx(weights):
    folder = ROOT / "mlx"
    folder.mkdir(exist_ok=True)
    names = {"self_attn.q_proj": 4, "self_attn.k_proj": 8, "self_attn.v_proj": 5, "self_attn.o_proj": 6, "mlp.gate_proj": 3,
             "mlp.up_proj": 2}
    tensors, expected, settings = {}, {}, {"group_size": 32, "bits": 4}
    for name, bits in names.items():
        w = mx.array(weights[f"{HF}{name}.weight"]).astype(mx.bfloat16)
        group = 64 if w.shape[1] % 64 == 0 else 32
        q, s, b = mx.quantize(w, group_size=group, bits=bits)
        stem = "language_model.model.layers.0." + name
        tensors[stem + ".weight"], tensors[stem + ".scales"], tensors[stem + ".biases"] = q, s, b
        if (group, bits) != (32, 4):
            settings[stem] = {"group_size": group, "bits": bits}
        exact = mx.dequantize(q, s.astype(mx.float32), b.astype(mx.float32), group_size=group, bits=bits)
        expected["layers.0." + name + ".weight"] = ("F32", np.array(exact))
    norm = "input_layernorm"
    tensors[f"language_model.model.layers.0.{norm}.weight"] = mx.array(weights[f"{HF}{norm}.weight"]).astype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(config_with("quantization", settings))
    save(folder / "expected.safetensors", expected)


def every_code(scales, bits, group):
    """A weight with one group for each scale and 32 codes (4 bits: 16 codes, again and again), as mlx stores it."""
    codes = np.arange(1 << bits, dtype=np.uint32)
    codes = codes[(codes & 0x7F) != 0x7F] if bits == 8 else codes  # E4M3: no number
    codes = np.resize(codes, -(-len(codes) // group) * group)
    words = np.zeros((len(scales), len(codes) * bits // 32), np.uint32)
    for i, code in enumerate(codes):
        words[:, i * bits // 32] |= code << np.uint32(i * bits % 32)
    return mx.array(words), mx.array(np.repeat(np.array(scales, np.uint8)[:, None], len(codes) // group, 1))


def mlx_float(weights):
    """The modes of floating point, with the config.json of mlx-lm's quantize_model(): some weights of the tiny model, and
    weights that hold every scale with every code. mxfp8 is compared in bfloat16, in which mlx computes by default."""
    folder = ROOT / "mlx_float"
    folder.mkdir(exist_ok=True)
    modes = {"mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
    scales = {"mxfp4": range(253), "nvfp4": [s for s in range(256) if s & 0x7F != 0x7F], "mxfp8": [0, 1, 3, 8, 100, 127, 200, 246]}
    names = {"mxfp4": ("self_attn.q_proj", "mlp.up_proj"), "nvfp4": ("self_attn.k_proj", "mlp.gate_proj"),
             "mxfp8": ("self_attn.v_proj", "mlp.down_proj")}
    tensors, expected, settings = {}, {}, {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    for mode, (group, bits) in modes.items():
        w = mx.array(weights[f"{HF}{names[mode][0]}.weight"]).astype(mx.bfloat16)
        for name, (q, s) in zip(names[mode], (mx.quantize(w, mode=mode), every_code(scales[mode], bits, group))):
            stem = "language_model.model.layers.0." + name
            tensors[stem + ".weight"], tensors[stem + ".scales"] = q, s
            if mode != "mxfp4":
                settings[stem] = {"group_size": group, "bits": bits, "mode": mode}
            exact = mx.dequantize(q, s, mode=mode, dtype=mx.bfloat16 if mode == "mxfp8" else mx.float32)
            expected[f"layers.0.{name}.weight"] = ("F32", np.array(exact.astype(mx.float32)))
    w = mx.array(weights[f"{HF}self_attn.o_proj.weight"]).astype(mx.bfloat16)
    stem = "language_model.model.layers.0.self_attn.o_proj"
    tensors[stem + ".weight"], tensors[stem + ".scales"], tensors[stem + ".biases"] = q, s, b = mx.quantize(w, bits=4)
    # As the recipes of mlx_lm.convert (--quant-predicate mixed_4_6) have it where no --q-group-size is given.
    settings[stem] = {"group_size": None, "bits": 4, "mode": "affine"}
    exact = mx.dequantize(q, s.astype(mx.float32), b.astype(mx.float32), bits=4)
    expected["layers.0.self_attn.o_proj.weight"] = ("F32", np.array(exact))
    norm = "input_layernorm"
    tensors[f"language_model.model.layers.0.{norm}.weight"] = mx.array(weights[f"{HF}{norm}.weight"]).astype(mx.bfloat16)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(config_with("quantization", settings))
    save(folder / "expected.safetensors", expected)


def pack_int32(values):
    """[rows, n] signed 4-bit -> int32 [rows, ceil(n / 8)], the first in the lowest bits."""
    values = np.pad(values + 8, ((0, 0), (0, -values.shape[1] % 8))).astype(np.uint32)
    words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
    for i in range(8):
        words |= values[:, i::8] << np.uint32(4 * i)
    return words.view(np.int32)


def compressed_tensors(weights):
    folder = ROOT / "compressed_tensors"
    folder.mkdir(exist_ok=True)
    tensors, expected = {}, {}
    cases = {"self_attn.q_proj": (32, True), "mlp.up_proj": (32, False), "mlp.down_proj": (160, True), "self_attn.o_proj": (16, False)}
    for name, (group, symmetric) in cases.items():
        w = weights[f"{HF}{name}.weight"]
        rows, cols = w.shape
        g = w.reshape(rows, cols // group, group)
        if symmetric:
            scale = from_bf16(to_bf16(np.abs(g).max(-1) / 7.5))
            zero = np.zeros_like(scale)
        else:
            low, high = np.minimum(g.min(-1), 0), np.maximum(g.max(-1), 0)
            scale = from_bf16(to_bf16((high - low) / 15))
            zero = np.clip(np.rint(-8 - low / scale), -8, 7)
        q = np.clip(np.rint(g / scale[..., None]) + zero[..., None], -8, 7)
        stem = HF + name
        tensors[stem + ".weight_packed"] = ("I32", pack_int32(q.reshape(rows, cols).astype(np.int32)))
        tensors[stem + ".weight_scale"] = ("BF16", to_bf16(scale))
        tensors[stem + ".weight_shape"] = ("I64", np.array([rows, cols], np.int64))
        if not symmetric:
            tensors[stem + ".weight_zero_point"] = ("I32", pack_int32(zero.T.astype(np.int32)).T)
        values = (q - zero[..., None]) * scale[..., None]
        expected[f"layers.0.{name}.weight"] = ("F32", values.reshape(rows, cols).astype(np.float32))
    norm = f"{HF}input_layernorm.weight"
    tensors[norm] = ("BF16", to_bf16(weights[norm]))
    save(folder / "model.safetensors", tensors)
    save(folder / "expected.safetensors", expected)
    group = {"targets": ["Linear"], "input_activations": None, "output_activations": None,
             "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}}
    scheme = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group},
              "ignore": ["lm_head"], "kv_cache_scheme": None}
    (folder / "config.json").write_text(config_with("quantization_config", scheme))


if __name__ == "__main__":
    tiny = read_bf16(ROOT / "tiny/model.safetensors")
    mlx(tiny)
    mlx_float(tiny)
    compressed_tensors(tiny)
