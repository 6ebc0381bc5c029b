#!/usr/bin/env python3
"""Draws answers for the schemas of tests/golden/schemas with the masks of the grammar, at temperature 1 over equally
likely tokens, and validates them with the package jsonschema. Prints what compiling and masks took.

  pip install jsonschema regex && cmake --build --preset dev --target draw_answers
  python3 tools/check_schemas.py build/dev/draw_answers TOKENIZER.json [--count 1000] [--only NAME] [--out FILE]

TOKENIZER.json: models/demo/tokenizer.json, or Gemma's: xz -dk tests/golden/tokenizer/gemma3_tokenizer.json.xz.
Patterns are matched with `regex`, which knows \\p{...}, and with \\s as ECMA-262 has it. The remainder of multipleOf is taken in decimal and
of the number as it is written: jsonschema takes it in binary, where 0.3 is no multiple of 0.1. Formats are not checked, as is jsonschema's default.
"""
import argparse
import decimal
import json
import pathlib
import subprocess
import sys

import jsonschema
import regex
from jsonschema import validators

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/schemas"


ECMA_SPACE = "\\t-\\r \\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000\\ufeff"  # Python's \\s also has U+0085


def without_nullable(schema):
    """OpenAPI's nullable as JSON Schema has it."""
    if isinstance(schema, dict):
        inner = {name: without_nullable(value) for name, value in schema.items()}
        return {"anyOf": [{"type": "null"}, inner]} if inner.pop("nullable", None) is True else inner
    return [without_nullable(one) for one in schema] if isinstance(schema, list) else schema


class Written(float):
    """A number that remembers its text: Python prints 620510610502168.75 with one digit less."""
    def __new__(cls, text):
        made = super().__new__(cls, text)
        made.text = text
        return made


def as_ecma(expression):
    """With \\s, in a class or outside, as ECMA-262 has it."""
    inside, out, at = False, "", 0
    while at < len(expression):
        one = expression[at:at + 2] if expression[at] == "\\" else expression[at]
        inside = one == "[" or (inside and one != "]")
        space = {"\\s": ECMA_SPACE if inside else f"[{ECMA_SPACE}]", "\\S": one if inside else f"[^{ECMA_SPACE}]"}
        out, at = out + space.get(one, one), at + len(one)
    return out


def pattern(validator, expression, instance, schema):
    if validator.is_type(instance, "string") and not regex.search(as_ecma(expression), instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {expression!r}")


def pattern_properties(validator, patterns, instance, schema):
    if not validator.is_type(instance, "object"):
        return
    for expression, subschema in patterns.items():
        for name, value in instance.items():
            if regex.search(as_ecma(expression), name):
                yield from validator.descend(value, subschema, path=name)


def multiple_of(validator, unit, instance, schema):
    if validator.is_type(instance, "number"):
        with decimal.localcontext(prec=400):
            if decimal.Decimal(getattr(instance, "text", str(instance))) % decimal.Decimal(str(unit)) != 0:
                yield jsonschema.ValidationError(f"{instance!r} is not a multiple of {unit}")


def validator_of(schema):
    base = validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    known = validators.extend(base, {"pattern": pattern, "patternProperties": pattern_properties, "multipleOf": multiple_of})
    return known(schema)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("tokenizer")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", help="writes the program's output there, too")
    parser.add_argument("--again", help="takes the program's output from this file, and does not run it")
    args = parser.parse_args()
    schemas = [one for path in sorted(GOLDEN.glob("*.json")) for one in json.loads(path.read_text())]
    schemas = {one["name"]: one["schema"] for one in schemas if args.only in one["name"]}
    lines = "".join(json.dumps({"name": name, "schema": schema}) + "\n" for name, schema in schemas.items())
    if args.again:
        output = pathlib.Path(args.again).read_text()
    else:
        result = subprocess.run([args.program, args.tokenizer, str(args.count)], input=lines, text=True, capture_output=True)
        if result.returncode != 0:
            sys.exit(f"{args.program} failed: {result.stderr}")
        output = result.stdout
    if args.out:
        pathlib.Path(args.out).write_text(output)
    answers = invalid = unfinished = redrawn = 0
    compile_ms, first, p50, p99, slow = [], [], [], [], []
    for line in output.rstrip("\n").split("\n"):  # not splitlines(): answers may hold U+2028
        one = json.loads(line)
        if "error" in one:
            print(f"{one['name']}: {one['error']}")
            invalid += 1
            continue
        validator = validator_of(without_nullable(schemas[one["name"]]))
        redrawn += len(one["broken"])
        for text in one["answers"]:
            if text.endswith(" (no end)"):
                unfinished += 1
                continue
            answers += 1
            try:
                error = next(validator.iter_errors(json.loads(text, parse_float=Written)), None)
            except json.JSONDecodeError as problem:
                error = problem
            if error is not None:
                invalid += 1
                print(f"{one['name']}: {str(error).splitlines()[0][:200]} in {text[:100]}")
        compile_ms.append(one["compile_ms"])
        if one["mask_us"]:
            first.append(one["mask_us"]["first"])
            p50.append(one["mask_us"]["p50"])
            p99.append(one["mask_us"]["p99"])
            slow.append((one["mask_us"]["p99"], one["name"]))
    print(f"{len(schemas)} schemas, {answers} whole answers, {invalid} invalid; {unfinished} had no end after 4,000 tokens; "
          f"{redrawn} were drawn again")

    def spread(values):
        values = sorted(values)
        return f"median {values[len(values) // 2]:.3g}, p99 {values[int(0.99 * (len(values) - 1))]:.3g}, most {values[-1]:.3g}"

    print("compile, ms:", spread(compile_ms))
    print("first mask of a grammar, us:", spread(first))
    print("p50 of the other masks of a schema, us:", spread(p50))
    print("p99 of the other masks of a schema, us:", spread(p99))
    print("slowest p99:", ", ".join(f"{name} {value:.0f} us" for value, name in sorted(slow)[-5:][::-1]))
    sys.exit(invalid > 0)


if __name__ == "__main__":
    main()
