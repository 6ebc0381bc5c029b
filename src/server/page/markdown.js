"use strict";
// Markdown to DOM nodes. What the model writes becomes text nodes and a fixed set of elements, never HTML: nothing it
// says can become markup, a script or an address other than http(s) and mailto.
const markdown = (() => {
  function element(name, ...children) {
    const node = document.createElement(name);
    node.append(...children);
    return node;
  }

  const SAFE_LINK = /^(https?:\/\/|mailto:)/i;
  const INLINE = /(`+)([\s\S]*?[^`])\1(?!`)|\*\*(?=\S)([\s\S]*?\S)\*\*|__(?=\S)([\s\S]*?\S)__|~~(?=\S)([\s\S]*?\S)~~|\*(?=[^\s*])([\s\S]*?[^\s*])\*(?!\*)|\b_(?=[^\s_])([\s\S]*?[^\s_])_\b|\[([^\]\n]+)\]\(([^\s()]+)\)|(https?:\/\/[^\s<>()\]]+[^\s<>()\].,;:!?'"])|\\([\\`*_{}[\]()#+\-.!~|>])/;

  function link(address, ...children) {
    if (!SAFE_LINK.test(address)) return element("span", ...children);
    const node = element("a", ...children);
    node.href = address;
    node.target = "_blank";
    node.rel = "noopener noreferrer nofollow";
    return node;
  }

  function inline(text, depth = 0) {
    const nodes = [];
    while (text) {
      const found = depth < 8 ? INLINE.exec(text) : null;
      if (!found) break;
      if (found.index) nodes.push(text.slice(0, found.index));
      const [all, , code, bold, bold2, struck, italic, italic2, label, address, bare, escaped] = found;
      if (code !== undefined) nodes.push(element("code", code.replace(/^ (.*) $/s, "$1")));
      else if (bold ?? bold2) nodes.push(element("strong", ...inline(bold ?? bold2, depth + 1)));
      else if (struck) nodes.push(element("s", ...inline(struck, depth + 1)));
      else if (italic ?? italic2) nodes.push(element("em", ...inline(italic ?? italic2, depth + 1)));
      else if (label) nodes.push(link(address, ...inline(label, depth + 1)));
      else if (bare) nodes.push(link(bare, bare));
      else nodes.push(escaped);
      text = text.slice(found.index + all.length);
    }
    if (text) nodes.push(text);
    return nodes;
  }

  function lines(text) {
    return text.split("\n").flatMap((line, i) => i ? [element("br"), ...inline(line)] : inline(line));
  }

  function codeBlock(code, language) {
    const block = element("div", element("pre", element("code", code)));
    block.className = "block";
    if (language) {
      const name = element("span", language.slice(0, 24));
      name.className = "lang";
      block.append(name);
    }
    block.dataset.copy = code;
    return block;
  }

  function cells(row) {
    return row.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  }

  function table(rows) {
    const line = (row, kind) => element("tr", ...cells(row).map((cell) => element(kind, ...inline(cell))));
    const node = element("div", element("table", element("thead", line(rows[0], "th")),
                                        element("tbody", ...rows.slice(2).map((row) => line(row, "td")))));
    node.className = "table";
    return node;
  }

  const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;

  function list(source, depth) {
    const first = ITEM.exec(source[0]);
    const ordered = /\d/.test(first[2]);
    const node = element(ordered ? "ol" : "ul");
    if (ordered) node.start = parseInt(first[2], 10);
    let item = [];
    const close = () => { if (item.length) node.append(element("li", ...blocks(item, depth + 1, true))); item = []; };
    for (const line of source) {
      const found = ITEM.exec(line);
      if (found && found[1].length <= first[1].length) {
        close();
        item.push(found[3]);
      } else {
        item.push(line.replace(/^\s{1,4}/, ""));
      }
    }
    close();
    return node;
  }

  // `tight`: a paragraph alone in a list item needs no <p>.
  function blocks(source, depth = 0, tight = false) {
    const nodes = [];
    let i = 0;
    const take = (good) => {
      const from = i;
      while (i < source.length && good(source[i], i - from)) ++i;
      return source.slice(from, i);
    };
    while (i < source.length) {
      const line = source[i];
      const fence = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/.exec(line);
      const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
      if (!line.trim()) {
        ++i;
      } else if (fence) {
        ++i;
        const body = take((l) => !l.trim().startsWith(fence[1]));
        ++i;
        nodes.push(codeBlock(body.join("\n"), fence[2]));
      } else if (heading) {
        ++i;
        nodes.push(element("h" + Math.min(heading[1].length + 2, 5), ...inline(heading[2])));
      } else if (/^\s*([-*_])\s*(\1\s*){2,}$/.test(line)) {
        ++i;
        nodes.push(element("hr"));
      } else if (/^\s*>/.test(line) && depth < 6) {
        const quoted = take((l) => /^\s*>/.test(l)).map((l) => l.replace(/^\s*> ?/, ""));
        nodes.push(element("blockquote", ...blocks(quoted, depth + 1)));
      } else if (ITEM.test(line) && depth < 6) {
        nodes.push(list(take((l, n) => n === 0 || ITEM.test(l) || /^\s{2,}\S/.test(l) ||
                                       (!l.trim() && ITEM.test(source[i + 1] ?? ""))), depth));
      } else if (line.includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(source[i + 1] ?? "") &&
                 (source[i + 1].includes("|") || source[i + 1].includes("-"))) {
        nodes.push(table(take((l) => l.includes("|"))));
      } else {
        const text = take((l, n) => n === 0 || (l.trim() && !/^\s*(`{3,}|~{3,}|#{1,6}\s|>)/.test(l) && !ITEM.test(l))).join("\n");
        if (tight) nodes.push(...lines(text)); else nodes.push(element("p", ...lines(text)));
      }
    }
    return nodes;
  }

  return (text) => blocks(text.replace(/\r\n?/g, "\n").split("\n"));
})();
