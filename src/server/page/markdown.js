// How does Markdown become nodes: paragraphs, lists, tables, code, formulas? The parts of a line are inline.js's.
import {make} from "./dom.js";
import {inline} from "./inline.js";
import {coloured, formula} from "./rich.js";

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)(.*)$/;
const FENCE = /^(\s*)(`{3,}|~{3,})\s*([\w+#.-]*)/;
const RULE = /^\s*([-*_])\s*(\1\s*){2,}$/;
const TABLE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MATH = /^\s*(\$\$|\\\[)/;
const DEPTH = 8;

const indent = (line) => /^\s*/.exec(line)[0].length;
const blank = (line) => !line.trim();
const HEADING_OR_QUOTE = /^\s*(#{1,6}\s|>)/;

function withBreaks(text) {
  return text.split("\n").flatMap((line, i) => (i ? [make("br"), ...inline(line)] : inline(line)));
}

function codeBlock(code, language) {
  const body = make("pre", {tabIndex: 0, role: "region", "aria-label": language ? `Code in ${language}` : "Code"},
                    make("code", {}, ...coloured(code, language.toLowerCase())));
  const block = make("div", {className: "block", "data-copy": code}, body);
  if (language) block.append(make("span", {className: "lang", textContent: language.slice(0, 24)}));
  return block;
}

// The cells of a row; a bar in code, or after a backslash, parts nothing.
function cells(row) {
  const parts = [""];
  const inner = row.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  for (const piece of inner.match(/`[^`]*`|\\\||\||[^|`\\]+|[^]/g) ?? []) {
    if (piece === "|") parts.push(""); else parts[parts.length - 1] += piece === "\\|" ? "|" : piece;
  }
  return parts.map((cell) => cell.trim());
}

const alignment = (mark) => (/^:-*:$/.test(mark) ? "centred" : /-:$/.test(mark) ? "right" : "");

function table(rows) {
  const head = cells(rows[0]);
  const sides = cells(rows[1]).map(alignment);
  const line = (all, kind) => make("tr", {}, ...head.map((_, i) => {
    const cell = make(kind, {className: sides[i] ?? ""}, ...inline(all[i] ?? ""));
    if (kind === "th") cell.scope = "col";
    return cell;
  }));
  return make("div", {className: "table", tabIndex: 0, role: "region", "aria-label": "Table"}, make("table", {},
    make("thead", {}, line(head, "th")), make("tbody", {}, ...rows.slice(2).map((row) => line(cells(row), "td")))));
}

// How many lines from `from` on belong to the item that begins there.
function itemLength(source, from, base) {
  let fence = null;
  for (let i = from + 1; i < source.length; ++i) {
    const line = source[i];
    const mark = FENCE.exec(line)?.[2];
    if (fence) {
      if (line.trim().startsWith(fence)) fence = null;
      continue;
    }
    const deep = indent(line) >= base + 2;
    if (blank(line)) {
      const next = source.slice(i).find((l) => !blank(l));
      if (next === undefined || indent(next) < base + 2) return i - from;
    } else if (!deep && (mark || [ITEM, HEADING_OR_QUOTE, RULE].some((each) => each.test(line)) || blank(source[i - 1]))) {
      return i - from;
    } else if (mark) {
      fence = mark;
    }
  }
  return source.length - from;
}

function itemNode(lines, depth) {
  const [, before, mark, gap, rest] = ITEM.exec(lines[0]);
  const offset = before.length + mark.length + Math.min(Math.max(gap.length, 1), 4);
  const task = /^\[([ xX])\]\s+(.*)$/.exec(rest);
  const inner = [task ? task[2] : rest, ...lines.slice(1).map((line) => line.slice(Math.min(indent(line), offset)))];
  const node = make("li", {}, ...blocks(inner, depth + 1, !lines.some(blank)));
  if (task) {
    const done = task[1] !== " ";
    node.className = "task";
    node.prepend(make("input", {type: "checkbox", disabled: true, checked: done, "aria-label": done ? "Done" : "To do"}));
    if (done) node.firstChild.setAttribute("checked", "");
  }
  return node;
}

// The list at `from`: items of one kind and about one indentation. Gives the node and where it ends.
function list(source, from, depth) {
  const [, before, mark] = ITEM.exec(source[from]);
  const kind = (found) => (/\d/.test(found[2]) ? "1" + found[2].at(-1) : found[2]);
  const first = kind([0, 0, mark]);
  const node = make(/\d/.test(mark) ? "ol" : "ul");
  if (/\d/.test(mark) && parseInt(mark, 10) !== 1) node.start = parseInt(mark, 10);
  let i = from;
  while (i < source.length) {
    let at = i;
    while (at < source.length && blank(source[at])) ++at;
    const found = at < source.length ? ITEM.exec(source[at]) : null;
    if (!found || kind(found) !== first || RULE.test(source[at]) || Math.abs(found[1].length - before.length) > 1) break;
    const length = itemLength(source, at, found[1].length);
    node.append(itemNode(source.slice(at, at + length), depth));
    i = at + length;
  }
  return [node, i];
}

// A formula of its own lines; null where it never ends.
function mathBlock(source, from) {
  const [open] = MATH.exec(source[from]).slice(1);
  const close = open === "$$" ? "$$" : "\\]";
  for (let i = from, text = ""; i < Math.min(source.length, from + 100); ++i) {
    text += (i > from ? "\n" : "") + source[i];
    const end = text.indexOf(close, text.indexOf(open) + 2);
    if (end < 0) continue;
    if (text.slice(end + 2).trim()) return null;  // more follows on its line: a part of a paragraph
    return [make("p", {}, ...formula(text.slice(text.indexOf(open) + 2, end).trim(), true, text.trim())), i + 1];
  }
  return null;
}

const isTable = (source, i) => source[i].includes("|") && TABLE.test(source[i + 1] ?? "") && source[i + 1].includes("-");

// `tight`: the paragraphs of a list item need no <p>.
function blocks(source, depth, tight = false) {
  const nodes = [];
  let i = 0;
  const take = (good) => {
    const from = i;
    do ++i; while (i < source.length && good(source[i], i));
    return source.slice(from, i);
  };
  while (i < source.length) {
    const line = source[i];
    const fence = FENCE.exec(line);
    const heading = /^\s{0,3}(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    const formulaHere = MATH.test(line) ? mathBlock(source, i) : null;
    if (blank(line)) {
      ++i;
    } else if (fence) {
      const body = take((l) => !(l.trim().startsWith(fence[2]) && !l.trim().slice(fence[2].length).trim())).slice(1);
      ++i;
      nodes.push(codeBlock(body.map((l) => l.slice(Math.min(indent(l), fence[1].length))).join("\n"), fence[3]));
    } else if (heading) {
      ++i;
      nodes.push(make("h" + Math.min(heading[1].length + 2, 6), {}, ...inline(heading[2])));
    } else if (formulaHere) {
      nodes.push(formulaHere[0]);
      i = formulaHere[1];
    } else if (RULE.test(line)) {
      ++i;
      nodes.push(make("hr"));
    } else if (/^\s*>/.test(line) && depth < DEPTH) {
      const quoted = take((l) => /^\s*>/.test(l)).map((l) => l.replace(/^\s*> ?/, ""));
      nodes.push(make("blockquote", {}, ...blocks(quoted, depth + 1)));
    } else if (ITEM.test(line) && depth < DEPTH) {
      const [node, end] = list(source, i, depth);
      nodes.push(node);
      i = end;
    } else if (isTable(source, i)) {
      nodes.push(table(take((l) => l.includes("|"))));
    } else {
      const goesOn = (l, n) => !blank(l) && !isTable(source, n) &&
        ![FENCE, HEADING_OR_QUOTE, ITEM, RULE, MATH].some((each) => each.test(l));
      const text = take(goesOn).map((l) => l.trimStart()).join("\n");
      if (tight) nodes.push(...withBreaks(text)); else nodes.push(make("p", {}, ...withBreaks(text)));
    }
  }
  return nodes;
}

// Headings begin at h3, below the page's and the message's, and skip no level.
function levelled(nodes) {
  let last = 2;
  return nodes.map((node) => {
    if (!/^H\d$/.test(node.tagName ?? "")) return node;
    const level = Math.min(Number(node.tagName[1]), last + 1);
    last = level;
    return level === Number(node.tagName[1]) ? node : make("h" + level, {}, ...node.childNodes);
  });
}

// A tab that indents counts as four blanks, but not in code.
function expanded(source) {
  let fence = null;
  return source.map((line) => {
    const mark = FENCE.exec(line)?.[2];
    if (fence ? line.trim().startsWith(fence) : mark) fence = fence ? null : mark;
    return fence ? line : line.replace(/^[ \t]+/, (white) => white.replaceAll("\t", "    "));
  });
}

export const markdown = (text) => levelled(blocks(expanded(text.replace(/\r\n?/g, "\n").split("\n")), 0));
