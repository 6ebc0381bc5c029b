#!/usr/bin/env python3
"""Writes the demo checkpoint with a longer context, or a larger vocabulary, or both.

    make_demo_variant.py OUTPUT [--positions 131072] [--vocabulary 262144]

The answers stay those of the demo: a word that is added has no BPE merge, so text is never split into it, and its
embedding is that of a token which the demo never writes. It can be chosen where a grammar forbids the others, and it
makes masks, samplers and log probabilities as wide as those of the 31B. Positions past the 4,096 of training work as
far as rotary embeddings carry. Uses only the standard library.
"""
import argparse
import json
import pathlib
import random
import shutil
import struct

ROOT = pathlib.Path(__file__).resolve().parent.parent
EMBEDDING = "model.language_model.embed_tokens.weight"
NEVER_WRITTEN = 21  # <|audio|>
SYLLABLES = [a + b + c for a in ["", "b", "c", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v"]
             for b in "aeiou" for c in ["", "n", "r", "s", "t", "ng"]]


def new_words(count, taken):
    """Words as a vocabulary of many languages has them: most begin a word, some are numbers, signs or other scripts."""
    dice, words = random.Random(7), {}
    while len(words) < count:
        kind = dice.random()
        if kind < 0.8:
            word = "".join(dice.choice(SYLLABLES) for _ in range(dice.randrange(2, 5)))
            word = word.capitalize() if dice.random() < 0.15 else word
        elif kind < 0.9:
            word = "".join(chr(dice.randrange(0x4E00, 0x9FA0)) for _ in range(dice.randrange(1, 4)))
        elif kind < 0.95:
            word = "".join(dice.choice("{}[]\":,.;()=<>/_-+*#") for _ in range(dice.randrange(2, 6)))
        else:
            word = "".join(chr(dice.randrange(0x400, 0x460)) for _ in range(dice.randrange(2, 8)))
        word = ("▁" if dice.random() < 0.6 else "") + word
        if word not in taken and "<" not in word:
            words[word] = None
    return list(words)


def wider_weights(source, target, vocabulary):
    data = source.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:8 + size]), data[8 + size:]
    tensors = sorted((entry["data_offsets"][0], name) for name, entry in header.items() if name != "__metadata__")
    at, parts = 0, []
    for _, name in tensors:
        entry = header[name]
        part = body[slice(*entry["data_offsets"])]
        if name == EMBEDDING:
            row = entry["shape"][1] * 2
            part += part[NEVER_WRITTEN * row:(NEVER_WRITTEN + 1) * row] * (vocabulary - entry["shape"][0])
            entry["shape"][0] = vocabulary
        entry["data_offsets"] = [at, at + len(part)]
        at += len(part)
        parts.append(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=0, help="words in all; the demo's own number if not given")
    arguments = parser.parse_args()
    demo = ROOT / "models/demo"
    shutil.copytree(demo, arguments.output)
    config = json.loads((demo / "config.json").read_text())
    text = config["text_config"]
    text["max_position_embeddings"] = arguments.positions
    if arguments.vocabulary > text["vocab_size"]:
        tokenizer = json.loads((demo / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        for word in new_words(arguments.vocabulary - text["vocab_size"], set(vocabulary)):
            vocabulary[word] = len(vocabulary)
        (arguments.output / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
        wider_weights(demo / "model.safetensors", arguments.output / "model.safetensors", arguments.vocabulary)
        text["vocab_size"] = text["vocab_size_per_layer_input"] = arguments.vocabulary
    (arguments.output / "config.json").write_text(json.dumps(config, indent=2))
    print(f"{arguments.output}: {text['max_position_embeddings']} positions, {text['vocab_size']} words")


if __name__ == "__main__":
    main()
