#!/usr/bin/env python3
"""Style as a test: the include rule between rooms, file sizes, line lengths. Exits 1 and lists what breaks a rule."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
# A room includes only itself and the rooms named here (docs/ARCHITECTURE.md).
ROOMS = {
    "base": [],
    "quant": ["base"],
    "text": ["base"],
    "image": ["base"],
    "checkpoint": ["base", "quant"],
    "distributed": ["base"],
    "backend": ["base", "quant", "distributed"],
    "model": ["base", "quant", "checkpoint", "distributed", "backend"],
    "program": ["base", "quant", "checkpoint", "distributed", "backend", "model"],
    "engine": ["base", "text", "image", "checkpoint", "distributed", "backend", "model"],
    "server": ["base", "text", "engine"],
    "cli": ["base", "quant", "text", "image", "checkpoint", "distributed", "backend", "model", "engine", "server", "program"],
}
FILE_LINES = 600
LINE_LENGTH = 120


def included(path):
    return re.findall(r'^#include "([^"]+)"', path.read_text(), re.M)


def check_names(headers, problems):
    """Two types of one name and namespace, in two headers: the linker takes one's functions for both."""
    seen = {}
    for path in headers:
        namespace = []
        for line in path.read_text().splitlines():
            if opened := re.match(r"namespace ([\w:]+) \{", line):
                namespace.append(opened[1])
            elif line.startswith("}  // namespace") and namespace:
                namespace.pop()
            elif named := re.match(r"(?:struct|class|enum class|enum) (?:alignas\(\d+\) )?(\w+)(?: final)?(?: :[^:].*)? \{", line):
                name = "::".join(namespace + [named[1]])
                if namespace and seen.setdefault(name, path) != path:
                    problems.append(f"{path.relative_to(ROOT)}: {seen[name].relative_to(ROOT)} has a {name} too")


def check(path, problems):
    relative = path.relative_to(SRC)
    room = relative.parts[0]
    test = re.search(r"_(test|bench|fuzz|testing)\.", path.name)
    text = path.read_text()
    lines = text.splitlines()
    if len(lines) > FILE_LINES:
        problems.append(f"{relative}: {len(lines)} lines, more than {FILE_LINES}")
    for number, line in enumerate(lines, 1):
        if len(line) > LINE_LENGTH:
            problems.append(f"{relative}:{number}: longer than {LINE_LENGTH} columns")
        if "FIXME" in line or "XXX" in line:
            problems.append(f"{relative}:{number}: says it is unfinished")
    if path.suffix == ".h" and not text.startswith("//"):
        problems.append(f"{relative}: a header begins with a comment that says what question it answers")
    if not test:
        for header in included(path):
            other = header.split("/")[0]
            if other in ROOMS and other != room and other not in ROOMS[room]:
                problems.append(f"{relative}: room {room} may not include {header}")
            sealed = re.match(r"backend/(cpu|cuda)/", header)
            if sealed and not str(relative).startswith(f"backend/{sealed[1]}/"):
                problems.append(f"{relative}: {header} is sealed inside its backend")
        if re.search(r"\bvirtual\b", re.sub(r"//.*", "", text)) and str(relative) != "backend/backend.h":
            problems.append(f"{relative}: Backend's are the only virtual functions")
        if "<nlohmann/json.hpp>" in text and str(relative) != "base/json.h":
            problems.append(f"{relative}: only base/json.h includes nlohmann's header; include that")
        if "<CLI/" in text and str(relative) != "cli/command_line.cc":
            problems.append(f"{relative}: only cli/command_line.cc includes CLI11")
        if "hwy/" in text and not str(relative).startswith("backend/cpu/"):
            problems.append(f"{relative}: only backend/cpu includes Highway")
        if re.search(r"#include <(cuda|cublas)", text) and not str(relative).startswith("backend/cuda/"):
            problems.append(f"{relative}: only backend/cuda includes CUDA headers")


def check_parity(problems):
    """docs/parity_with_executorch.md names only tests that exist."""
    have = set()
    for path in [*SRC.rglob("*_test.c*"), *(ROOT / "tests").rglob("*_test.cc")]:
        have.update(f"{a}.{b}" for a, b in re.findall(r"^TEST(?:_[FP])?\((\w+), *(\w+)\)", path.read_text(), re.M))
    for line in (ROOT / "docs/parity_with_executorch.md").read_text().splitlines():
        suite = ""
        for named, test in re.findall(r"`(\w*)\.([\w*]+)`", line):
            suite = named or suite  # `.Name` is another test of the suite before it
            pattern = re.escape(suite) + r"\." + test.replace("*", ".*")
            if not any(re.fullmatch(pattern, name) for name in have):
                problems.append(f"docs/parity_with_executorch.md: there is no test {suite}.{test}")


def main():
    problems = []
    check_parity(problems)
    check_names(sorted(p for p in SRC.rglob("*") if p.suffix in (".h", ".cuh")), problems)
    for path in sorted(SRC.rglob("*")):
        if path.suffix in (".h", ".cc", ".cu", ".cuh"):
            check(path, problems)
    print("\n".join(problems) if problems else "tidy: no problem found")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
