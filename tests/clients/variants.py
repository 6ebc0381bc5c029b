#!/usr/bin/env python3
"""Writes a variant of the demo checkpoint for tests with real clients, whose prompts are long.

    variants.py OUTPUT [--positions N] [--words N]

--positions: the longest context that config.json names (the demo was trained for 4,096; the weights do not depend on it).
--words: as many words in the vocabulary. The new ones are words of Python's standard library, made by merges behind the
demo's own, so English text has a fifth as many tokens; the rest are invented, of several scripts, and no text is split into
them: they make masks and log probabilities as wide as those of the 31B. They have the embedding of <pad>, which the model
never writes, and words that the demo was trained on keep their tokens.
"""
import argparse
import collections
import json
import pathlib
import random
import re
import shutil
import struct
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "models/demo"
SYLLABLES = [a + b + c for a in ["", "b", "c", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v"]
             for b in "aeiou" for c in ["", "n", "r", "s", "t", "ng"]]
WORD = re.compile(r"[A-Za-z]{3,24}")


def known_words():
    """Of the questions with known answers, and of those that tests ask."""
    text = "Set a timer in minutes for Count from to Describe this image What is at the left right top bottom number digits"
    for path in (ROOT / "tests/golden/demo_eval").glob("*.json"):
        text += path.read_text()
    return set(WORD.findall(text))


def words_by_use():
    count = collections.Counter()
    for path in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py")):
        if "site-packages" not in path.parts and "dist-packages" not in path.parts:
            count.update(WORD.findall(path.read_text(errors="ignore")))
    return [word for word, _ in count.most_common()]


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


class Words:
    """The vocabulary and its merges, which grow by words."""

    def __init__(self, model):
        self.vocab, self.merges = model["vocab"], model["merges"]
        self.rank = {tuple(pair): i for i, pair in enumerate(self.merges)}

    def pieces(self, text):
        parts = list(text)
        while len(parts) > 1:
            best = min(range(len(parts) - 1), key=lambda i: self.rank.get((parts[i], parts[i + 1]), 1 << 60))
            if (parts[best], parts[best + 1]) not in self.rank:
                break
            parts[best:best + 2] = [parts[best] + parts[best + 1]]
        return parts

    def add(self, text, most):
        parts = self.pieces(text)
        if any(part not in self.vocab for part in parts):
            return
        while len(parts) > 1 and len(self.vocab) < most:
            pair = (parts[0], parts[1])
            if pair in self.rank:
                return  # another order of merges than here: leave it
            self.rank[pair] = len(self.merges)
            self.merges.append(list(pair))
            joined = pair[0] + pair[1]
            if joined not in self.vocab:
                self.vocab[joined] = len(self.vocab)
            parts[:2] = [joined]


def widen_tokenizer(tokenizer, count):
    words, known = Words(tokenizer["model"]), known_words()
    for word in words_by_use():
        if word in known:
            continue
        for text in ("\u2581" + word, word):
            words.add(text, count)
        if len(words.vocab) >= count:
            break
    for word in new_words(count - len(words.vocab), words.vocab):
        words.vocab[word] = len(words.vocab)


def widen_weights(source, output, count):
    data = source.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, begin = json.loads(data[8:8 + size]), 8 + size
    name = "model.language_model.embed_tokens.weight"
    table = header[name]
    rows, cols = table["shape"]
    first, last = table["data_offsets"]
    row = (last - first) // rows
    pad = data[begin + first:begin + first + row]
    grown = data[begin + first:begin + last] + pad * (count - rows)
    # The table goes to the end; the others close up.
    offset, pieces = 0, []
    for key, entry in sorted((k, e) for k, e in header.items() if k not in ("__metadata__", name)):
        a, b = entry["data_offsets"]
        pieces.append(data[begin + a:begin + b])
        entry["data_offsets"] = [offset, offset + b - a]
        offset += b - a
    table["shape"], table["data_offsets"] = [count, cols], [offset, offset + len(grown)]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    output.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(pieces) + grown)


def make(output, positions=None, words=None):
    output.mkdir(parents=True, exist_ok=True)
    for path in DEMO.iterdir():
        shutil.copy(path, output)
    config = json.loads((DEMO / "config.json").read_text())
    text = config["text_config"]
    if positions:
        text["max_position_embeddings"] = positions
    if words:
        tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
        widen_tokenizer(tokenizer, words)
        (output / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
        widen_weights(DEMO / "model.safetensors", output / "model.safetensors", words)
        text["vocab_size"] = text["vocab_size_per_layer_input"] = words
    (output / "config.json").write_text(json.dumps(config, indent=1))
    return output


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--positions", type=int)
    parser.add_argument("--words", type=int)
    options = parser.parse_args()
    make(options.output, options.positions, options.words)
