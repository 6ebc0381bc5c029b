#!/usr/bin/env python3
"""Style as a test: which module includes which, sizes of files, functions and folders, words, paths that documents name.
Exits 1 and lists what breaks a rule. The rules in prose: docs/STYLE.md."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
# A module includes only itself and the modules named here (docs/ARCHITECTURE.md).
MODULES = {
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
FUNCTION_LINES = 60
LINE_LENGTH = 120
FOLDER_SOURCES = 30
SOURCE = (".h", ".cc", ".cu", ".cuh")
NOT_COUNTED = re.compile(r"_(test|bench|fuzz|testing)\.")  # beside the sources that they are about

# Words of this project alone, and the field's. Patterns match whole words, whatever their case.
WORDS = {
    "verbs?": "op (of a backend), command (of the command line)",
    "rooms|(a|the|this|that|each|which|whose|own|every|no) room": "module",
    "multiprocessors?": "SM",
    "copy engines?": "TMA",
    "(copying|computing|adding) warps?": "producer, consumer, reduction warp",
    "step[ _]kernels?": "decode megakernel",
    "fixed_kernel|mixed_kernel|wide_kernel|simple_kernel|plain_kernel|between_kernel|best_kernel|move_kernel":
        "what the kernel computes",
    "inbox(es)?": "receive buffer",
    "residual_norm": "add_rms_norm",
    "query_type": "attention_type",
    "product_type": "gemm_output_type",
    "input_type": "gemm_input_type",
    "sum_type": "reduce_type",
    "StoredMatrix": "PrepackedWeight",
    "Preparer|PromptMaker": "InputProcessor",
    "Answerer": "OutputProcessor",
    "Stepper": "EngineCore",
    "PageCache": "PrefixCache",
    "TokenKeys?": "TokenHash",
    "RankCalls?": "RankCommand",
    "StepRecorder|StepProgram|StepOp|StepWords": "the decode megakernel's recorder, instruction list, instruction, channel",
    "first design|original system|seed tests?|(of|by|in) the spec": "what it was (ExecuTorch, the Gemma 4 documents, ..)",
}
# Some words are private only where they stand for something the field has a name for.
CUDA_WORDS = {
    "panels?": "row tile",
    "digits?": "int8 limbs",
    "facts?": "group scales",
    "eights|fours": "vectors of eight, of four",
    "attend\\w*": "attention, flash_decode, flash_prefill",
    "number of the (step|sum)": "epoch",
}
UNCHECKED_LOCKS = {"base/mutex.h", "backend/cuda/comm/nccl.cc"}  # clang 14 cannot read CUDA 13's headers
FREE_TEXT = {"docs/cuda/experiments.md", "docs/STYLE.md", "tools/tidy.py", "CHANGELOG.md"}  # may name the old words
PERSISTED = re.compile(r'"(chunks of 16 x 64|panels of 32)[^"]*"')  # exported programs hold these strings


def find_words(text, words):
    """(line number, word found, what to say instead)"""
    for word, instead in words.items():
        for found in re.finditer(rf"(?<![A-Za-z0-9_]){'(?:' + word + ')'}(?![A-Za-z0-9])", text, re.I):
            yield text.count("\n", 0, found.start()) + 1, found[0], instead


def check_words(problems):
    folders = ("src", "tests", "tools", "docs", "cmake", "fuzz", "examples")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    for path in [*paths, ROOT / "CMakeLists.txt", ROOT / "Makefile", *sorted(ROOT.glob("*.md"))]:
        name = str(path.relative_to(ROOT))
        if path.suffix not in (*SOURCE, ".py", ".sh", ".md", ".cmake", ".txt") and name != "Makefile":
            continue
        if name in FREE_TEXT or "golden" in path.parts:
            continue
        text = PERSISTED.sub("", path.read_text())
        words = WORDS | CUDA_WORDS if name.startswith("src/backend/cuda/") else WORDS
        for line, found, instead in find_words(text, words):
            problems.append(f"{name}:{line}: \"{found}\" is this project's own word; say: {instead}")


def check_folders(problems):
    for folder in [SRC, *(p for p in sorted(SRC.rglob("*")) if p.is_dir())]:
        sources = [p for p in folder.iterdir() if p.suffix in SOURCE and not NOT_COUNTED.search(p.name)]
        if len(sources) > FOLDER_SOURCES:
            problems.append(f"{folder.relative_to(ROOT)}: {len(sources)} sources, more than {FOLDER_SOURCES}")


def functions(text):
    """(name, first line, number of lines) of every function body; a lambda belongs to the function around it."""
    blank = lambda m: re.sub(r"[^\n]", " ", m[0])
    text = re.sub(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', blank, text,
                  flags=re.S)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)
    depth, body, begin = 0, None, 0
    for at, char in enumerate(text):
        if char == "{":
            head = text[begin:at]
            if body is None and "(" in head and not re.search(r"\b(namespace|class|struct|enum|union)\b[^()]*$", head) \
                    and not re.search(r"=\s*$|\boperator\s*$", head):
                start = begin + len(head) - len(head.lstrip())
                body = (re.sub(r"\s+", " ", head.strip()), start, depth)
            depth += 1
            begin = at + 1
        elif char == "}":
            depth -= 1
            if body is not None and depth == body[2]:
                # a member's initialiser in braces, before the body, is no body
                rest = text[at + 1:at + 40].lstrip()
                if not (rest.startswith((",", "{")) and re.search(r"\)\s*:", body[0])):
                    first = text.count("\n", 0, body[1]) + 1
                    yield body[0], first, text.count("\n", 0, at) + 2 - first
                    body = None
            begin = at + 1
        elif char == ";" and body is None:
            begin = at + 1


def check_functions(path, problems):
    for head, line, length in functions(path.read_text()):
        if length > FUNCTION_LINES:
            problems.append(f"{path.relative_to(ROOT)}:{line}: {length} lines in one function, more than "
                            f"{FUNCTION_LINES}: {head[:60]}")


def expand(text):
    """a{b,c}d -> abd, acd"""
    if not (found := re.search(r"\{([^{}]*)\}", text)):
        return [text]
    return [one for choice in found[1].split(",") for one in expand(text[:found.start()] + choice + text[found.end():])]


def check_paths(problems):
    """Paths in backticks and targets of links in documents exist."""
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        name = path.relative_to(ROOT)
        if str(name) in ("docs/cuda/experiments.md", "CHANGELOG.md"):
            continue
        text = path.read_text()
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            if not (path.parent / link).exists():
                problems.append(f"{name}: there is no {link}")
        for quoted in re.findall(r"`([\w.{},/-]+/[\w.{},-]*)`", re.sub(r"```.*?```", "", text, flags=re.S)):
            if not re.search(r"\.(h|cc|cu|cuh|py|sh|md|cmake)(\}|$)|^(src|tests|tools|docs|cmake|backend|text|model|engine)/",
                             quoted):
                continue
            for one in expand(quoted):
                places = [ROOT / one, SRC / one, ROOT / "docs" / one, SRC / "backend" / one, path.parent / one]
                if not any(p.exists() for p in places) and "build/" not in one:
                    problems.append(f"{name}: there is no {one}")


def check_support_names(problems):
    for path in [*SRC.rglob("*.h"), *(ROOT / "tests").rglob("*.h")]:
        if "test" in path.name and not path.name.endswith("_testing.h"):
            problems.append(f"{path.relative_to(ROOT)}: what helps tests is named *_testing.h")


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
    module = relative.parts[0]
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
        if re.search(r"std::(mutex|condition_variable)\b", line) and not test and str(relative) not in UNCHECKED_LOCKS:
            problems.append(f"{relative}:{number}: Mutex and CondVar of base/mutex.h, so that clang checks who holds them")
    if path.suffix == ".h" and not text.startswith("//"):
        problems.append(f"{relative}: a header begins with a comment that says what question it answers")
    check_functions(path, problems)
    if not test:
        for header in included(path):
            other = header.split("/")[0]
            if other in MODULES and other != module and other not in MODULES[module]:
                problems.append(f"{relative}: module {module} may not include {header}")
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
    check_words(problems)
    check_folders(problems)
    check_paths(problems)
    check_support_names(problems)
    check_parity(problems)
    check_names(sorted(p for p in SRC.rglob("*") if p.suffix in (".h", ".cuh")), problems)
    for path in sorted(SRC.rglob("*")):
        if path.suffix in SOURCE:
            check(path, problems)
    print("\n".join(problems) if problems else "tidy: no problem found")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
