#!/usr/bin/env python3
"""Writes tests/golden/gguf: two layers and the vision tower of tests/golden/tiny as GGUF files, through the gguf package
and under llama.cpp's names, every matrix in another format. Needs: pip install gguf numpy. Run once; the results are
committed. Names and keys: llama.cpp's conversion/gemma.py and conversion/base.py."""
import json
import pathlib
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden"
LAYERS = [4, 5]  # one sliding, one full
TEXT = {"self_attn.q_proj": ("attn_q", Type.Q4_0), "self_attn.k_proj": ("attn_k", Type.Q8_0),
        "self_attn.v_proj": ("attn_v", Type.Q5_1), "self_attn.o_proj": ("attn_output", Type.Q4_1),
        "mlp.gate_proj": ("ffn_gate", Type.Q5_0), "mlp.up_proj": ("ffn_up", Type.F16),
        "mlp.down_proj": ("ffn_down", Type.BF16), "self_attn.q_norm": ("attn_q_norm", Type.F32),
        "self_attn.k_norm": ("attn_k_norm", Type.F32), "input_layernorm": ("attn_norm", Type.F32),
        "post_attention_layernorm": ("post_attention_norm", Type.F32), "pre_feedforward_layernorm": ("ffn_norm", Type.F32),
        "post_feedforward_layernorm": ("post_ffw_norm", Type.F32)}
VISION = {"self_attn.q_proj.linear": "attn_q", "self_attn.k_proj.linear": "attn_k", "self_attn.v_proj.linear": "attn_v",
          "self_attn.o_proj.linear": "attn_out", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
          "mlp.gate_proj.linear": "ffn_gate", "mlp.up_proj.linear": "ffn_up", "mlp.down_proj.linear": "ffn_down",
          "input_layernorm": "ln1", "post_attention_layernorm": "attn_post_norm", "pre_feedforward_layernorm": "ln2",
          "post_feedforward_layernorm": "ffn_post_norm"}


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        raw = np.frombuffer(data, np.uint8, end - begin, 8 + size + begin)
        assert entry["dtype"] == "BF16"
        out[name] = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return out


def add(writer, name, array, kind):
    packed = gguf.quants.quantize(np.ascontiguousarray(array), kind)
    writer.add_tensor(name, packed, raw_dtype=kind)


def text(weights, config, tokenizer):
    c = config["text_config"]
    w = gguf.GGUFWriter(ROOT / "gguf/tiny2.gguf", "gemma4")
    swa = [c["layer_types"][i] == "sliding_attention" for i in LAYERS]
    w.add_block_count(len(LAYERS))
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv([c["num_key_value_heads"] if s else c["num_global_key_value_heads"] for s in swa])
    w.add_key_length(c["global_head_dim"])
    w.add_value_length(c["global_head_dim"])
    w.add_key_length_swa(c["head_dim"])
    w.add_value_length_swa(c["head_dim"])
    w.add_rope_freq_base(c["rope_parameters"]["full_attention"]["rope_theta"])
    w.add_rope_freq_base_swa(c["rope_parameters"]["sliding_attention"]["rope_theta"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_final_logit_softcapping(c["final_logit_softcapping"])
    w.add_sliding_window(c["sliding_window"])
    w.add_sliding_window_pattern(swa)
    w.add_shared_kv_layers(0)
    w.add_embedding_length_per_layer_input(0)
    w.add_tokenizer_model("gemma4")
    vocab = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    special = {t["content"] for t in tokenizer["added_tokens"] if t["special"]}
    tokens = sorted(vocab, key=vocab.get)
    assert [vocab[t] for t in tokens] == list(range(len(tokens)))
    w.add_token_list(tokens)
    w.add_token_scores([-1000.0] * len(tokens))
    w.add_token_types([6 if t.startswith("<0x") else 3 if t in special else 1 for t in tokens])
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in tokenizer["model"]["merges"]])
    w.add_bos_token_id(2)
    w.add_eos_token_id(1)
    w.add_pad_token_id(0)
    p = "model.language_model."
    add(w, "token_embd.weight", weights[p + "embed_tokens.weight"], Type.Q8_0)
    add(w, "output_norm.weight", weights[p + "norm.weight"], Type.F32)
    for new, old in enumerate(LAYERS):
        for hf, (name, kind) in TEXT.items():
            array = weights.get(f"{p}layers.{old}.{hf}.weight")
            if array is not None:
                add(w, f"blk.{new}.{name}.weight", array, kind)
        add(w, f"blk.{new}.layer_output_scale.weight", weights[f"{p}layers.{old}.layer_scalar"], Type.F32)
    pairs = c["global_head_dim"] // 2
    rotated = int(c["global_head_dim"] * c["rope_parameters"]["full_attention"]["partial_rotary_factor"] / 2)
    add(w, "rope_freqs.weight", np.array([1.0] * rotated + [1e30] * (pairs - rotated), np.float32), Type.F32)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()


def vision(weights, config):
    v = config["vision_config"]
    w = gguf.GGUFWriter(ROOT / "gguf/mmproj-tiny2.gguf", "clip")
    w.add_type("mmproj")
    w.add_clip_has_vision_encoder(True)
    w.add_vision_projection_dim(config["text_config"]["hidden_size"])
    w.add_vision_image_size(224)
    w.add_vision_patch_size(v["patch_size"])
    w.add_vision_embedding_length(v["hidden_size"])
    w.add_vision_feed_forward_length(v["intermediate_size"])
    w.add_vision_block_count(v["num_hidden_layers"])
    w.add_vision_head_count(v["num_attention_heads"])
    w.add_vision_image_mean([0.0] * 3)
    w.add_vision_image_std([1.0] * 3)
    w.add_clip_vision_projector_type("gemma4v")
    w.add_vision_attention_layernorm_eps(v["rms_norm_eps"])
    p = "model.vision_tower."
    patch = weights[p + "patch_embedder.input_proj.weight"]
    k = v["patch_size"]
    add(w, "v.patch_embd.weight", patch.reshape(-1, k, k, 3).transpose(0, 3, 1, 2), Type.F32)
    add(w, "v.position_embd.weight", weights[p + "patch_embedder.position_embedding_table"], Type.F32)
    add(w, "v.std_bias", weights[p + "std_bias"], Type.F32)
    add(w, "v.std_scale", weights[p + "std_scale"], Type.F32)
    add(w, "mm.input_projection.weight", weights["model.embed_vision.embedding_projection.weight"], Type.BF16)
    for i in range(v["num_hidden_layers"]):
        for hf, name in VISION.items():
            array = weights[f"{p}encoder.layers.{i}.{hf}.weight"]
            add(w, f"v.blk.{i}.{name}.weight", array, Type.BF16 if array.ndim > 1 else Type.F32)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()


if __name__ == "__main__":
    (ROOT / "gguf").mkdir(exist_ok=True)
    all_weights = read_safetensors(ROOT / "tiny/model.safetensors")
    all_config = json.loads((ROOT / "tiny/config.json").read_text())
    text(all_weights, all_config, json.loads((ROOT / "tiny/tokenizer.json").read_text()))
    vision(all_weights, all_config)
