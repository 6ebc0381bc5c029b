#!/usr/bin/env python3
"""Renders random conversations with a published Gemma 4 31B chat template: tests/golden/chat/random*.json.

usage: make_chat_golden.py TEMPLATE OUT [SEED [COUNT]]
       make_chat_golden.py --check TEMPLATE FILE...

TEMPLATE is a chat_template.jinja of google/gemma-4-31B-it (of spring: random.json, of 2026-07-09: random_2026_07.json;
llama.cpp keeps a copy in models/templates). The conversations leave out what gemma4 deliberately renders differently
(docs/CHAT.md): parameters named like a keyword of JSON Schema, which the spring template drops from a declaration; members of
a schema that are no schemas; a system message of several content parts; tool results that answer no call; a call that is
given up; text beside a call whose result comes last. With --check, tells which conversations of the files TEMPLATE renders
otherwise than they say; models/demo/chat_template.jinja renders rendered.json and random.json. Needs jinja2.
"""
import json
import random
import sys

import jinja2

TEXTS = ["hello", "the weather", "Ünïcødé", "日本語", "👩‍👩‍👧", "a\nb", "  lead", "trail  ", "", '"q"', '{"a":1}', "C:\\p", "tab\t",
         "\u00a0nb\u3000", "<b>", "it's 5 & 6", "null", "1e5", "\n\n", "éa\u0301"]
NAMES = ["city", "unit", "Name", "b", "A", "_x", "date-from", "опт", "kind", "value", "Éa", "zz"]
KEYS = ["b", "A", "Zed", "z_1", "key", "ключ", "Éa", "éb", "ß", "x y"]
NUMBERS = [0, 1, -3, 10**12, -(10**18), 0.1, 1.0, -2.5, 1e-7, 1e20, 1e16, 123456.789, 1e-4, 5e-324, -0.0, 1e15]


class Writer:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def text(self):
        return " ".join(self.r.choice(TEXTS) for _ in range(self.r.randint(0, 3)))

    def some(self, make, most):
        return [make() for _ in range(self.r.randint(0, most))]

    def value(self, depth=0):
        kind = self.r.randrange(7 if depth < 2 else 5)
        if kind < 2:
            return self.text()
        if kind < 5:
            return self.r.choice([self.r.choice(NUMBERS), self.r.choice(NUMBERS), True, False, None])
        if kind == 5:
            return self.some(lambda: self.value(depth + 1), 3)
        return {self.r.choice(KEYS): self.value(depth + 1) for _ in range(self.r.randint(0, 3))}

    def schema(self, depth=0):
        kinds = ["string", "integer", "number", "boolean", "array", "object"]
        schema = {"type": self.r.choice(kinds if depth < 2 else kinds[:4])}
        if self.r.random() < 0.6:
            schema["description"] = self.text()
        if schema["type"] == "string" and self.r.random() < 0.4:
            schema["enum"] = self.some(lambda: self.r.choice(TEXTS), 3)
        if self.r.random() < 0.2:
            schema["nullable"] = self.r.random() < 0.7
        if self.r.random() < 0.2 and schema["type"] != "object":
            schema.update(self.r.choice([{"default": 1.5}, {"minimum": 1}, {"format": "date"}, {"additionalProperties": False}]))
        if schema["type"] == "array" and self.r.random() < 0.8:
            schema["items"] = self.schema(depth + 1)
        if schema["type"] == "object":
            if self.r.random() < 0.8:
                schema["properties"] = {self.r.choice(NAMES): self.schema(depth + 1) for _ in range(self.r.randint(0, 3))}
            if self.r.random() < 0.5:
                schema["required"] = self.some(lambda: self.r.choice(NAMES), 2)
        return schema

    def tool(self):
        function = {"name": self.r.choice(["get_weather", "book", "f.x"]), "description": self.text()}
        parameters = {"type": "object", "properties": {self.r.choice(NAMES): self.schema() for _ in range(self.r.randint(0, 3))}}
        if self.r.random() < 0.6:
            parameters["required"] = list(parameters["properties"])[:2]
        function["parameters"] = parameters if self.r.random() < 0.9 else {}
        if self.r.random() < 0.1:
            function["response"] = {"type": "object", "description": "An answer."}
        return {"type": "function", "function": function}

    def parts(self):
        if self.r.random() < 0.6:
            return self.text()
        return [{"type": "image"} if self.r.random() < 0.4 else {"type": "text", "text": self.text() + "."} for _ in range(self.r.randint(1, 3))]

    def calls(self, last):
        calls = []
        for _ in range(self.r.randint(1, 2)):
            arguments = {self.r.choice(NAMES): self.value() for _ in range(self.r.randint(0, 3))}
            name = self.r.choice(["get_weather", "book"])
            calls.append({"id": str(self.r.randrange(10**6)), "type": "function", "function": {"name": name, "arguments": arguments}})
        message = {"role": "assistant", "content": self.r.choice(["", None, self.text()]), "tool_calls": calls}
        if last and message["content"]:
            message["content"] = ""
        if self.r.random() < 0.4:
            message["reasoning_content"] = "Let me see."
        out = [message]
        if not last or self.r.random() < 0.8:
            for call in calls:
                content = self.r.choice([self.text(), json.dumps(self.value()), [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]])
                out.append({"role": "tool", "tool_call_id": call["id"], "content": content})
        return out

    def conversation(self):
        messages = []
        if self.r.random() < 0.4:
            messages.append({"role": self.r.choice(["system", "developer"]), "content": self.text()})
        turns = self.r.randint(1, 2)
        for turn in range(turns):
            messages.append({"role": "user", "content": self.parts()})
            answered, rounds = self.r.random() < 0.7, self.r.randint(0, 2)
            for i in range(rounds):
                messages += self.calls(last=turn + 1 == turns and i + 1 == rounds and not answered)
            if answered:
                answer = {"role": "assistant", "content": self.r.choice([self.text(), "<|channel>thought\nhm\n<channel|>" + self.text()])}
                if self.r.random() < 0.3:
                    answer["reasoning_content"] = "Hm."
                messages.append(answer)
        if messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1] and self.r.random() < 0.7:
            messages.append({"role": "user", "content": self.parts()})
        return messages


def environment():
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True)


def arguments_of(row):
    named = dict(messages=row["messages"], bos_token="<bos>", add_generation_prompt=row["add_generation_prompt"])
    if row["tools"]:
        named["tools"] = row["tools"]
    if row["enable_thinking"]:
        named["enable_thinking"] = True
    return named


def check(template, files):
    render = environment().from_string(open(template).read()).render
    differ = 0
    for file in files:
        for row in json.load(open(file)):
            if render(**arguments_of(row)) != row["rendered"]:
                print(f"{file}: {row['name']} differs")
                differ += 1
    sys.exit(differ > 0)


def main():
    if sys.argv[1] == "--check":
        return check(sys.argv[2], sys.argv[3:])
    template, out, seed, count = sys.argv[1], sys.argv[2], *(list(map(int, sys.argv[3:5])) + [1, 40][len(sys.argv) - 3:])
    render = environment().from_string(open(template).read()).render
    rows = []
    for i in range(count):
        writer = Writer(seed * 1_000_000 + i)
        row = dict(name=f"random_{i}", messages=writer.conversation(),
                   tools=[writer.tool() for _ in range(writer.r.randint(1, 2))] if writer.r.random() < 0.5 else None,
                   enable_thinking=writer.r.random() < 0.3, add_generation_prompt=writer.r.random() < 0.85)
        row["rendered"] = render(**arguments_of(row))
        rows.append(row)
    with open(out, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
