#!/usr/bin/env python3
"""Deals sources out to united files (unity builds), so that no file defines a name twice.

    unite.py COUNT SOURCE ...    prints the number of the file of each source, a line each; -1: it stays alone

A name is what a source defines at the outermost level of an unnamed namespace: a function, a constant, a type, an alias.
Sources with most names are dealt first, each to the file with the fewest bytes that has none of its names.
"""
import collections
import pathlib
import re
import sys

NAME = re.compile(r"^(?:static |inline |constexpr |const |template ?<[^>]*> ?)*"
                  r"(?:(?:struct|class|enum(?: class)?) (\w+)|(?:using|namespace) (\w+) = .*"
                  r"|[\w:<>,&*\[\] ]+?[ &*](\w+)(?:\(|\[| =|\{|;))")


def names(text):
    """Of an alias the whole line: the same alias may stand twice."""
    found, inside = set(), False
    for line in text.split("\n"):
        if line.startswith("namespace {"):
            inside = True
        elif line.startswith("}  // namespace"):
            inside = False
        elif inside and line and not line[0].isspace() and line[0] not in "#/}":
            if match := NAME.match(line):
                found.add(match[0] if match[2] else match[1] or match[3])
    return found


def deal(sources, count):
    texts = {source: pathlib.Path(source).read_text() for source in sources}
    defined = {source: names(text) for source, text in texts.items()}
    taken, size, place = collections.defaultdict(set), [0] * count, {}
    for source in sorted(sources, key=lambda one: (-len(texts[one]), one)):
        free = [file for file in range(count) if not taken[file] & defined[source]]
        file = min(free, key=lambda one: (size[one], one)) if free else -1
        place[source] = file
        if file >= 0:
            taken[file] |= defined[source]
            size[file] += len(texts[source])
    return [place[source] for source in sources]


if __name__ == "__main__":
    print("\n".join(map(str, deal(sys.argv[2:], int(sys.argv[1])))))
