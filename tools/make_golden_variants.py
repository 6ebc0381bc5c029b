#!/usr/bin/env python3
"""Writes tests/golden/variants: random Gemma 4 checkpoints of a few kilobytes, each with features that tests/golden/tiny
lacks, and what Hugging Face transformers computes on them.

usage: make_golden_variants.py OUT [NAME...]        the committed ones, or those named
       make_golden_variants.py OUT --random SEED N  N more of random shapes, to look for differences

Needs torch, torchvision and transformers 5.17. The arithmetic is float32 with eager attention. Weights are rounded to the
type of the file, and the embedding scale to bfloat16, as for a bfloat16 checkpoint.
"""
import copy
import json
import os
import random
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Gemma4Config, Gemma4ForConditionalGeneration
from transformers.models.gemma4.image_processing_gemma4 import Gemma4ImageProcessor

IMAGE, BOI, EOI = 7, 5, 6  # token ids
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

TEXT = dict(
    model_type="gemma4_text", vocab_size=61, hidden_size=24, intermediate_size=28, num_hidden_layers=4,
    layer_types=["sliding_attention", "full_attention"] * 2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True, sliding_window=9, rms_norm_eps=1e-6,
    hidden_activation="gelu_pytorch_tanh", final_logit_softcapping=30.0, use_bidirectional_attention="vision",
    max_position_embeddings=2048, hidden_size_per_layer_input=0, num_kv_shared_layers=0, enable_moe_block=False,
    attention_bias=False, tie_word_embeddings=True, pad_token_id=0, bos_token_id=2, eos_token_id=1,
    rope_parameters=dict(
        sliding_attention=dict(rope_type="default", rope_theta=1e4),
        full_attention=dict(rope_type="proportional", rope_theta=1e6, partial_rotary_factor=0.25)))
VISION = dict(
    model_type="gemma4_vision", hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, head_dim=12, patch_size=2, pooling_kernel_size=2, position_embedding_size=130,
    standardize=True, use_clipped_linears=False, rms_norm_eps=1e-6, hidden_activation="gelu_pytorch_tanh",
    default_output_length=70, rope_parameters=dict(rope_type="default", rope_theta=100.0))
TOP = dict(
    architectures=["Gemma4ForConditionalGeneration"], model_type="gemma4", dtype="bfloat16", tie_word_embeddings=True,
    audio_config=None, image_token_id=IMAGE, boi_token_id=BOI, eoi_token_id=EOI, audio_token_id=59, video_token_id=60,
    boa_token_id=57, eoa_token_index=58, eos_token_id=[1, 16])
DEFAULT_CASES = [  # name, ids ("T3": three text tokens, "#59": this one, "I41x17": an image of that size), budget
    ("text", "T20 #59 T9 #60 T19", 70),
    ("images", "I41x17 T3 I5x60 T20", 70)]

S, F = "sliding_attention", "full_attention"


def variant(text=None, vision=None, top=None, **more):
    return dict(text=text or {}, vision=vision or {}, top=top or {}, **more)


def rope(sliding=None, full=None):
    return dict(sliding_attention=dict(rope_type="default", rope_theta=1e4, **(sliding or {})),
                full_attention={**dict(rope_type="proportional", rope_theta=1e6, partial_rotary_factor=0.25), **(full or {})})


VARIANTS = {
    # Full layers first; the window wider than the prompt; no softcap, a head of its own; no standardisation.
    "full_first": variant(
        dict(layer_types=[F, S, F], num_hidden_layers=3, sliding_window=512, final_logit_softcapping=None,
             tie_word_embeddings=False),
        dict(standardize=False, patch_size=3, head_dim=16, num_attention_heads=1,
             num_key_value_heads=1), dict(tie_word_embeddings=False)),
    # V of its own on full layers, which then have the sliding layers' count of KV heads; causal images; odd sizes.
    "k_and_v": variant(
        dict(layer_types=[S, S, F], num_hidden_layers=3, attention_k_eq_v=False, num_global_key_value_heads=None,
             hidden_size=23, intermediate_size=31, vocab_size=71, num_attention_heads=6, num_key_value_heads=3,
             head_dim=10, global_head_dim=14, use_bidirectional_attention=None, final_logit_softcapping=7.0,
             rope_parameters=rope(dict(), dict(partial_rotary_factor=0.6, factor=8.0, rope_theta=5e4))),
        dict(hidden_size=13, intermediate_size=19, pooling_kernel_size=3, num_attention_heads=3,
             num_key_value_heads=3, head_dim=8), dtype="float16",
        cases=[("text", "T50", 70), ("image", "T4 I9x70 T2", 70)]),
    # transformers 5.17's own spelling of config.json; float32; shards.
    "saved_by_5_17": variant(
        dict(layer_types=[S, F, S, F], sliding_window=1, num_attention_heads=5, num_key_value_heads=5,
             num_global_key_value_heads=5, head_dim=6, global_head_dim=12, rope_parameters=rope(
                 dict(), dict(partial_rotary_factor=1.0, rope_theta=123.0))),
        dict(rope_parameters=dict(rope_type="axial", rope_theta=31.0)), dtype="float32",
        own_config=True, shards=3, layer_scalar=(2.5, 3.5),
        cases=[("text", "T20", 70), ("images", "T2 I13x13 T1 I30x7", 70)]),
    # An image of many more tokens than the window; the prompt ends with it.
    "long_image": variant(
        dict(layer_types=[S, S, S, S, S, F], num_hidden_layers=6, sliding_window=17, num_attention_heads=2,
             num_key_value_heads=1),
        dict(patch_size=1, position_embedding_size=40), layer_scalar=(0.3, 0.5),
        cases=[("image", "T3 I64x40 T30 I40x64", 140)]),
}


def build_config(v):
    config = copy.deepcopy(TOP)
    config["text_config"] = {**copy.deepcopy(TEXT), **copy.deepcopy(v["text"])}
    config["vision_config"] = {**copy.deepcopy(VISION), **copy.deepcopy(v["vision"])}
    config.update(v["top"])
    config["dtype"] = v.get("dtype", "bfloat16")
    return config


@torch.no_grad()
def randomise(model, generator, dtype, layer_scalar):
    def normal(shape):
        return torch.randn(shape, generator=generator)
    for name, p in model.named_parameters():
        p.requires_grad_(False)
        if "norm" in name:
            p.copy_(1 + 0.3 * normal(p.shape))
        elif "position_embedding_table" in name:
            p.copy_(0.3 * normal(p.shape))
        elif "embed_tokens" in name:
            p.copy_(normal(p.shape) * p.shape[1] ** -0.5)
        else:
            p.copy_(normal(p.shape) * p.shape[-1] ** -0.5)
        if name.endswith(("q_norm.weight", "k_norm.weight")):  # scores of about one, so that attention is not uniform
            p.mul_(1.5 * p.numel() ** -0.25)
    low, high = layer_scalar
    for name, b in model.named_buffers():
        if name.endswith("layer_scalar"):
            b.fill_(float(low + (high - low) * torch.rand(1, generator=generator)))
        if name.endswith("std_bias"):
            b.copy_(normal(b.shape))
        if name.endswith("std_scale"):
            b.copy_(0.1 + 0.1 * torch.rand(b.shape, generator=generator))
    for tensor in list(model.parameters()) + list(model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype).to(torch.float32)
    for module in model.modules():
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale.fill_(module.scalar_embed_scale)
            module.embed_scale.data = module.embed_scale.data.to(torch.bfloat16).to(torch.float32)
    # Rotary tables are no weights: restore what the rounding above did to them.
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            fresh = type(module)(module.config)
            for name, b in fresh.named_buffers():
                getattr(module, name).data = b.data


def picture(path, width, height, seed):
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[0:height, 0:width]
    waves = [128 + 110 * np.sin(xx / (3 + 2 * c) + yy / (5 + c) + seed) + rng.normal(0, 6, (height, width)) for c in range(3)]
    Image.fromarray(np.stack(waves, -1).clip(0, 255).astype(np.uint8)).save(path)


def run_case(model, config, budget, ids, images, greedy, hidden):
    out, inputs = {}, {}
    if images:
        vision = config["vision_config"]
        processor = Gemma4ImageProcessor(
            max_soft_tokens=budget, patch_size=vision["patch_size"], pooling_kernel_size=vision["pooling_kernel_size"])
        pixels = processor(images=images, return_tensors="pt")
        inputs = dict(pixel_values=pixels["pixel_values"], image_position_ids=pixels["image_position_ids"])
        features = model.get_image_features(inputs["pixel_values"], inputs["image_position_ids"], return_dict=True).pooler_output
        kept = [p[:, 0] >= 0 for p in pixels["image_position_ids"]]
        out["pixel_values"] = torch.cat([v[k] for v, k in zip(pixels["pixel_values"], kept)])
        out["pixel_position_ids"] = torch.cat([p[k] for p, k in zip(pixels["image_position_ids"], kept)]).to(torch.int32)
        out["patches_per_image"] = torch.tensor([int(k.sum()) for k in kept], dtype=torch.int32)
        out["image_features"] = torch.cat(list(features), 0)
        soft = [int(n) for n in pixels["num_soft_tokens_per_image"]]
        flat = []
        for id_ in ids:
            flat += [BOI] + [IMAGE] * soft.pop(0) + [EOI] if id_ == IMAGE else [id_]
        ids = flat

    def forward(tokens, **kw):
        t = torch.tensor([tokens])
        return model(input_ids=t, mm_token_type_ids=(t == IMAGE).long(), use_cache=False, **inputs, **kw)

    o = forward(ids, output_hidden_states=hidden)
    out["input_ids"] = torch.tensor(ids, dtype=torch.int32)
    out["logits"] = o.logits[0]
    if hidden:
        out["hidden_states"] = torch.stack([h[0] for h in o.hidden_states])
    sequence, steps = list(ids), []
    for _ in range(greedy):
        steps.append(forward(sequence, logits_to_keep=1).logits[0, -1])
        sequence.append(int(steps[-1].argmax()))
        if sequence[-1] == IMAGE:  # an image without pixels: nothing can follow it
            break
    if greedy:
        out["greedy_ids"] = torch.tensor(sequence[len(ids):], dtype=torch.int32)
        out["greedy_logits"] = torch.stack(steps)
    return {k: t.float().contiguous() if t.is_floating_point() else t.contiguous() for k, t in out.items()}


def write_weights(model, folder, dtype, shards):
    """One file, or `shards` of them with an index."""
    tensors = {k: t.to(dtype).contiguous() for k, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    if shards == 1:
        save_file(tensors, f"{folder}/model.safetensors")
        return
    names, index = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[i::shards]
        save_file({n: tensors[n] for n in mine}, f"{folder}/{file}", metadata=dict(format="pt"))
        index.update({n: file for n in mine})
    json.dump(dict(metadata=dict(total_size=0), weight_map=index), open(f"{folder}/model.safetensors.index.json", "w"))


@torch.no_grad()
def make(out, name, v, seed):
    folder = f"{out}/{name}"
    os.makedirs(f"{folder}/golden", exist_ok=True)
    os.makedirs(f"{folder}/images", exist_ok=True)
    config = build_config(v)
    hf = Gemma4Config.from_dict(copy.deepcopy(config))
    hf._attn_implementation = "eager"
    model = Gemma4ForConditionalGeneration(hf).float().eval()
    dtype = DTYPES[config["dtype"]]
    randomise(model, torch.Generator().manual_seed(seed), dtype, v.get("layer_scalar", (0.7, 1.1)))
    if v.get("own_config"):
        hf.save_pretrained(folder)
    else:
        json.dump(config, open(f"{folder}/config.json", "w"), indent=1)
    write_weights(model, folder, dtype, v.get("shards", 1))
    r, cases, number = random.Random(seed), [], 0
    for case, plan, budget in v.get("cases", DEFAULT_CASES):
        ids, files = [], []
        for part in plan.split():
            if part[0] == "T":
                ids += [r.randrange(17, 57) for _ in range(int(part[1:]))]
            elif part[0] == "#":
                ids.append(int(part[1:]))
            else:
                width, height = map(int, part[1:].split("x"))
                files.append(f"{number}_{width}x{height}.png")
                picture(f"{folder}/images/{files[-1]}", width, height, seed + number)
                ids.append(IMAGE)
                number += 1
        images = [Image.open(f"{folder}/images/{f}") for f in files]
        tensors = run_case(model, config, budget, ids, images, v.get("greedy", 6), bool(v.get("hidden")))
        save_file(tensors, f"{folder}/golden/{case}.safetensors")
        cases.append(dict(name=case, images=files, max_soft_tokens=budget))
        print(f"{name} {case}: {len(tensors['input_ids'])} tokens, logits' deviation {float(tensors['logits'].std()):.2f}")
    note = dict(model=name, arithmetic="float32 on the file's rounded weights, transformers 5.17", cases=cases)
    json.dump(note, open(f"{folder}/golden/cases.json", "w"), indent=1)


def random_variant(r):
    """Any shape that this program says it supports. (Pooling by 1 is left out: transformers keeps the padding there.)"""
    layers = r.randrange(1, 8)
    kinds = [r.choice([S, F]) for _ in range(layers - 1)] + [F]
    pattern = r.randrange(4)
    if pattern == 0:
        kinds = [F if i % 6 == 5 or i == layers - 1 else S for i in range(layers)]
    if pattern == 1:
        kinds = [F] * layers
    heads = r.choice([1, 2, 3, 4, 6, 8, 12])
    kv = r.choice([k for k in (1, 2, 3, 4, 6, 8, 12) if heads % k == 0])
    global_kv = r.choice([k for k in (1, 2, 3, 4, 6, 8, 12) if heads % k == 0])
    k_eq_v = r.random() < 0.7
    full = dict(partial_rotary_factor=r.choice([0.1, 0.25, 0.3, 0.5, 0.75, 1.0]), rope_theta=r.choice([50.0, 1e4, 1e6, 1e7]))
    if r.random() < 0.4:
        full["factor"] = r.choice([0.5, 2.0, 8.0])
    text = dict(
        num_hidden_layers=layers, layer_types=kinds, num_attention_heads=heads, num_key_value_heads=kv,
        num_global_key_value_heads=global_kv if k_eq_v or r.random() < 0.5 else None, attention_k_eq_v=k_eq_v,
        head_dim=2 * r.randrange(1, 40), global_head_dim=2 * r.randrange(2, 70), hidden_size=r.randrange(5, 150),
        intermediate_size=r.randrange(3, 200), vocab_size=r.randrange(97, 400), sliding_window=r.choice([1, 2, 3, 9, 24, 33, 64, 500]),
        final_logit_softcapping=r.choice([None, 30.0, 3.5, 100.0]), use_bidirectional_attention=r.choice([None, "vision", "vision"]),
        rms_norm_eps=r.choice([1e-6, 1e-5, 1e-3]),
        rope_parameters=dict(sliding_attention=dict(rope_type="default", rope_theta=r.choice([100.0, 1e4, 3e5])),
                             full_attention=dict(rope_type="proportional", **full)))
    vheads = r.choice([1, 2, 3, 5])
    vision = dict(
        hidden_size=r.randrange(4, 90), intermediate_size=r.randrange(3, 90), num_hidden_layers=r.randrange(1, 4),
        num_attention_heads=vheads, num_key_value_heads=vheads, head_dim=4 * r.randrange(1, 20), patch_size=r.randrange(1, 9),
        pooling_kernel_size=r.randrange(2, 5), position_embedding_size=1200, standardize=r.random() < 0.5,
        rms_norm_eps=r.choice([1e-6, 1e-4]), rope_parameters=dict(rope_type=r.choice(["default", "axial"]), rope_theta=r.choice([10.0, 100.0, 1e4])))
    tied = r.random() < 0.6
    text["tie_word_embeddings"] = tied
    def size():
        return f"I{r.choice([1, 3, 8, 31, 50, 97, 200])}x{r.choice([1, 2, 9, 33, 64, 120])}"
    budget = r.choice([70, 70, 70, 140, 280])
    plans = [f"T{r.randrange(1, 200)}", f"{size()} T{r.randrange(1, 60)}", f"T{r.randrange(1, 40)} {size()}",
             f"{size()} T{r.randrange(1, 9)} {size()} T{r.randrange(1, 50)} {size()}", f"T3 {size()} {size()}"]
    lo = r.choice([0.05, 0.7, 0.7, 2.0])
    return variant(text, vision, dict(tie_word_embeddings=tied), dtype=r.choice(list(DTYPES)), own_config=r.random() < 0.4,
                   shards=r.choice([1, 1, 2, 5]), layer_scalar=(lo, lo * 1.5), hidden=True, greedy=4,
                   cases=[("text", plans[0], 70), ("image", r.choice(plans[1:3]), budget), ("images", r.choice(plans[3:]), 70)])


def main():
    torch.set_num_threads(1)
    out, rest = sys.argv[1], sys.argv[2:]
    if rest[:1] == ["--random"]:
        seed, count = int(rest[1]), int(rest[2])
        for i in range(seed, seed + count):
            make(out, f"r{i}", random_variant(random.Random(i)), i)
        return
    for seed, name in enumerate(VARIANTS):
        if not rest or name in rest:
            make(out, name, VARIANTS[name], seed + 1)


if __name__ == "__main__":
    main()
