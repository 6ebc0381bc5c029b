#!/usr/bin/env python3
"""Writes tests/golden/drafter/tiny-assistant.gguf: tests/golden/drafter/tiny as llama.cpp's converter stores it. Keys:
conversion/gemma.py (Gemma4AssistantModel); names: gguf-py's constants.py (GEMMA4_ASSISTANT). Matrices stay bfloat16,
vectors become float32. Needs the standard library alone. Run once; the result is committed."""
import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden"
ARCH = "gemma4-assistant"
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # of metadata
TYPE_F32, TYPE_BF16 = 0, 30  # of tensors
ALIGN = 32
LAYER = {"self_attn.q_proj.weight": "attn_q.weight", "self_attn.o_proj.weight": "attn_output.weight",
         "self_attn.q_norm.weight": "attn_q_norm.weight", "mlp.gate_proj.weight": "ffn_gate.weight",
         "mlp.up_proj.weight": "ffn_up.weight", "mlp.down_proj.weight": "ffn_down.weight",
         "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "post_attention_norm.weight",
         "pre_feedforward_layernorm.weight": "ffn_norm.weight", "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
         "layer_scalar": "layer_output_scale.weight"}
OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
         "pre_projection.weight": "nextn.pre_projection.weight", "post_projection.weight": "nextn.post_projection.weight"}


def gguf_name(name):
    if name in OUTER:
        return OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER[rest]}"


def string(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, v):
    if kind == STRING:
        return string(v)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], v)


def entry(key, kind, v):
    if isinstance(v, list):
        return string(key) + struct.pack("<IIQ", ARRAY, kind, len(v)) + b"".join(value(kind, x) for x in v)
    return string(key) + struct.pack("<I", kind) + value(kind, v)


def metadata(config, tokenizer):
    c = config["text_config"]
    full = c["layer_types"].index("full_attention")
    own = c["per_layer_config"][str(full)]
    swa = [t == "sliding_attention" for t in c["layer_types"]]
    rope = c["rope_parameters"]
    vocab = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    special = {t["content"] for t in tokenizer["added_tokens"] if t["special"]}
    tokens = sorted(vocab, key=vocab.get)
    assert [vocab[t] for t in tokens] == list(range(len(tokens)))
    arch = [("block_count", U32, c["num_hidden_layers"]), ("context_length", U32, c["max_position_embeddings"]),
            ("embedding_length", U32, c["hidden_size"]), ("feed_forward_length", U32, c["intermediate_size"]),
            ("attention.head_count", U32, c["num_attention_heads"]),
            ("attention.head_count_kv", U32, [c["num_key_value_heads"] if s else own["num_key_value_heads"] for s in swa]),
            ("rope.freq_base", F32, rope["full_attention"]["rope_theta"]),
            ("rope.freq_base_swa", F32, rope["sliding_attention"]["rope_theta"]),
            ("attention.layer_norm_rms_epsilon", F32, c["rms_norm_eps"]),
            ("attention.key_length", U32, own["head_dim"]), ("attention.value_length", U32, own["head_dim"]),
            ("attention.key_length_swa", U32, c["head_dim"]), ("attention.value_length_swa", U32, c["head_dim"]),
            ("attention.sliding_window", U32, c["sliding_window"]),
            ("attention.sliding_window_pattern", BOOL, swa),
            ("attention.shared_kv_layers", U32, c["num_kv_shared_layers"]),
            ("embedding_length_per_layer_input", U32, 0),
            ("rope.dimension_count", U32, own["head_dim"]), ("rope.dimension_count_swa", U32, c["head_dim"]),
            ("embedding_length_out", U32, config["backbone_hidden_size"]),
            ("nextn_predict_layers", U32, c["num_hidden_layers"])]
    merges = [" ".join(m) if isinstance(m, list) else m for m in tokenizer["model"]["merges"]]
    return [("general.architecture", STRING, ARCH), ("general.type", STRING, "model"), ("general.alignment", U32, ALIGN),
            *[(f"{ARCH}.{key}", kind, v) for key, kind, v in arch],
            ("tokenizer.ggml.model", STRING, "gemma4"), ("tokenizer.ggml.tokens", STRING, tokens),
            ("tokenizer.ggml.scores", F32, [-1000.0] * len(tokens)),
            ("tokenizer.ggml.token_type", I32,
             [6 if t.startswith("<0x") else 3 if t in special else 1 for t in tokens]),
            ("tokenizer.ggml.merges", STRING, merges), ("tokenizer.ggml.bos_token_id", U32, 2),
            ("tokenizer.ggml.eos_token_id", U32, 1), ("tokenizer.ggml.padding_token_id", U32, 0)]


def tensors(path, config):
    """(name, shape, type, bytes) of each tensor; shapes outermost first."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    for name, item in header.items():
        begin, end = (8 + size + x for x in item["data_offsets"])
        raw = data[begin:end]
        assert item["dtype"] == "BF16"
        if len(item["shape"]) > 1:
            yield gguf_name(name), item["shape"], TYPE_BF16, raw
        else:
            yield gguf_name(name), item["shape"], TYPE_F32, b"".join(b"\0\0" + raw[i:i + 2] for i in range(0, len(raw), 2))
    c = config["text_config"]
    dim = c["per_layer_config"][str(c["layer_types"].index("full_attention"))]["head_dim"]
    turning = int(dim * c["rope_parameters"]["full_attention"]["partial_rotary_factor"] / 2)
    divisors = [1.0] * turning + [1e30] * (dim // 2 - turning)
    yield "rope_freqs.weight", [dim // 2], TYPE_F32, struct.pack(f"<{dim // 2}f", *divisors)


def main():
    config = json.loads((ROOT / "drafter/tiny/config.json").read_text())
    keys = metadata(config, json.loads((ROOT / "tiny/tokenizer.json").read_text()))
    items = list(tensors(ROOT / "drafter/tiny/model.safetensors", config))
    out = b"GGUF" + struct.pack("<IQQ", 3, len(items), len(keys)) + b"".join(entry(*key) for key in keys)
    offset = 0
    for name, shape, kind, raw in items:
        out += string(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in reversed(shape))
        out += struct.pack("<IQ", kind, offset)
        offset += (len(raw) + ALIGN - 1) // ALIGN * ALIGN
    out += b"\0" * (-len(out) % ALIGN)
    for _, _, _, raw in items:
        out += raw + b"\0" * (-len(raw) % ALIGN)
    (ROOT / "drafter/tiny-assistant.gguf").write_bytes(out)


if __name__ == "__main__":
    main()
