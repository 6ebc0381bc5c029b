"""Small requests that once took the server from everybody, for isolation_check.py and load_test.py.

Each row: its name, the request's bytes, the statuses that are right, and how long its client stays (None: until the
answer). What each of them did before is in docs/TRUST.md. Uses only the standard library. fresh() makes a request's
pictures new to the server, where the row asks for that.
"""
import base64
import collections
import json
import random
import re
import struct
import zlib

Row = collections.namedtuple("Row", "name request statuses stays", defaults=[None])


def post(path, body, headers=""):
    text = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n{headers}"
            f"Content-Length: {len(text)}\r\n\r\n").encode() + text


def chat(content="x", **more):
    return post("/v1/chat/completions", {"model": "demo", "max_tokens": 4,
                                         "messages": [{"role": "user", "content": content}], **more})


def schema(body, **more):
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": body}}, **more)


def pattern(text, **more):
    return schema({"type": "string", "pattern": text}, **more)


def forced_tool(parameters):
    return chat(tool_choice="required", tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}])


def png(width, height, bits, interlaced, extra=()):
    """A black grey-scale picture; `extra` are chunks in front of its pixels."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = 0
    for x, y, dx, dy in passes if interlaced else [(0, 0, 1, 1)]:
        columns, rows = (width - x + dx - 1) // dx, (height - y + dy - 1) // dy
        raw += rows * (1 + (columns * bits + 7) // 8) if columns else 0
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, int(interlaced))) +
            b"".join(chunk(*one) for one in extra) + chunk(b"IDAT", zlib.compress(bytes(raw), 9)) + chunk(b"IEND", b""))


def pictures(data, count):
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return [{"type": "image_url", "image_url": {"url": url}}] * count + [{"type": "text", "text": "x"}]


def with_detail(parts, detail):
    for part in parts[:-1]:
        part["image_url"] = {**part["image_url"], "detail": detail}
    return parts


UNIQUE = b"gemma4unique"  # base64, behind the end of a picture


def new_pictures(data, count):
    """Pictures that fresh() makes different each time."""
    data += bytes(-len(data) % 3) + base64.b64decode(UNIQUE)
    return pictures(data, count)


def fresh(request):
    return re.sub(UNIQUE, lambda _: f"{random.randrange(10**12):012}".encode(), request)


def long_text(length):
    return {"type": "object", "properties": {"a": {"enum": ["b" * length]}}, "required": ["a"]}


def many_references():
    """8,500 references to one object of 1,900 properties: 223 KB that were 43 s of work."""
    wide = {"properties": {f"p{i}": True for i in range(1900)}}
    return {"$defs": {"w": wide}, "allOf": [{"$ref": "#/$defs/w"}] * 8500}


def many_branches():
    """5,500 alternatives that share a long description: 257 KB that took 830 MiB."""
    return {"properties": {"a": {"type": "null", "description": "X" * 120000}},
            "anyOf": [{"required": [f"r{i}"]} for i in range(5500)]}


def long_strings():
    literal = "a" * 120000
    named = {"type": "object", "properties": {literal: {"type": "integer"}}}
    message = [{"role": "user", "content": "x"}]
    return [
        Row("1 const", schema({"const": literal}), {200, 400}),
        Row("1 property's name", schema(named), {200, 400}),
        Row("1 name in required", schema({"type": "object", "required": [literal]}), {200, 400}),
        Row("1 enum of a forced tool", forced_tool(long_text(120000)), {200, 400}),
        Row("1 const, /v1/responses", post("/v1/responses", {"model": "demo", "input": "x", "max_output_tokens": 4, "text": {
            "format": {"type": "json_schema", "name": "x", "schema": {"const": literal}}}}), {200, 400}),
        Row("1 enum, /v1/messages", post("/v1/messages", {"model": "demo", "max_tokens": 4, "messages": message,
            "tools": [{"name": "f", "input_schema": long_text(120000)}], "tool_choice": {"type": "any"}}), {200, 400}),
    ]


def patterns():
    return [
        Row("2 nested repeats", pattern("^(((((a?){0,60}){0,60}){0,60}){0,60}){0,60}$"), {200, 400}),
        Row("3 .*[aeiou].{15,20}", pattern("^.*[aeiou].{15,20}$", max_tokens=8), {200, 400}),
        Row("3 .*[a-m].{0,3000}", pattern("^.*[a-m].{0,3000}$", max_tokens=8), {200, 400}),
        Row("3 (.{0,100}){0,100}", pattern("^(.{0,100}){0,100}$", max_tokens=8), {200, 400}),
        Row("3 four of .*a.{0,300}", pattern("^(.*a.{0,300}|.*b.{0,300}|.*c.{0,300}|.*d.{0,300})$", max_tokens=8), {200, 400}),
    ]


def big_pictures():
    zeros = b"c\0\0" + zlib.compress(bytes(15_000_000), 9)
    large = {200, "slow", "no answer"}  # what four clients ask at a time takes two slow cores minutes
    return [
        Row("4 58 pictures, n=32, gone after 1 s", chat(pictures(png(8192, 8192, 1, True), 58), n=32), {200, 400, 429, 503}, 1),
        Row("5 56 pictures of 1x1", chat(pictures(png(1, 1, 8, False), 56), max_tokens=64), {200, 400, 429}),
        Row("20 a picture of 1,089 tokens", chat(with_detail(new_pictures(png(64, 64, 8, False), 1), "high")), large),
        Row("20 3 pictures of 1,089 tokens", chat(with_detail(new_pictures(png(64, 64, 8, False), 3), "high")), large),
        Row("6 picture with 250 texts", chat(pictures(png(1, 1, 8, False, [(b"zTXt", zeros)] * 250), 1)), {200, 400}),
    ]


def long_requests():
    calls = [{"role": "user", "content": "x"}] + [{"role": "tool", "tool_call_id": "c", "content": "y"}] * 120000
    return [
        Row("6 allOf of 8,500 references", schema(many_references()), {200, 400}),
        Row("6 anyOf of 5,500", schema(many_branches()), {200, 400}),
        Row("6 120,000 tool messages", post("/v1/chat/completions", {"model": "demo", "max_tokens": 1, "messages": calls}), {400}),
        Row("21 500,000 tokens to text", post("/detokenize", {"tokens": [7] * 500000}), {200}),
        Row("21 a name of 500,000 values", post("/api/show", {"model": [7] * 500000}), {400}),
        Row("18 log probabilities, n=4", chat("Count from 1 to 30.", n=4, max_tokens=40, logprobs=True, top_logprobs=20), {200}),
    ]


def broken():
    begin = ("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
             "Connection: close\r\n")
    body = json.dumps({"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})
    escaped = "".join(f"%{ord(digit):x}" for digit in str(len(body)))
    chunked = begin + "Transfer-Encoding: chunked\r\n\r\n"
    null = json.dumps({"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}).encode() + b"\0rest"
    closed = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["b"], "additionalProperties": False}
    return [
        Row("11 chunk without its end", (chunked.replace("Connection: close\r\n", "") + f"{len(body):x}\r\n{body}X\r\n"
            "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").encode(), {400}),
        Row("11 chunk ended by LF", f"{chunked}{len(body):x}\n{body}\n0\n\n".encode(), {400}),
        Row("11 chunk of 0x..", f"{chunked}0x{len(body):x}\r\n{body}\r\n0\r\n\r\n".encode(), {400}),
        Row("12 length in percents", f"{begin}Content-Length: {escaped}\r\n\r\n{body}".encode(), {400}),
        Row("13 nullable: 1", schema({"type": "string", "nullable": 1}), {400}),
        Row("13 $ref: 5", schema({"$ref": 5}), {400}),
        Row("13 required: \"a\" under allOf", schema({"allOf": [{"required": "a"}]}), {400}),
        Row("14 NUL after the body", post("/v1/chat/completions", null), {400}),
        Row("15 required, not allowed", schema(closed), {400}),
        Row("19 half a surrogate", post("/v1/chat/completions", body.replace('"x"', '"x\\ud83d"').encode()), {200}),
    ]


def rows():
    return long_strings() + patterns() + big_pictures() + long_requests() + broken()
