// How does a line of Markdown become nodes: emphasis, code, links, formulas? What the model writes becomes text nodes
// and a fixed set of elements, never HTML.
import {make} from "./dom.js";
import {formula} from "./rich.js";

const SAFE_LINK = /^(https?:\/\/|mailto:)/i;
const SAFE_PICTURE = /^data:image\/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+$/;
const ENTITIES = {nbsp: "\u00a0", amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", copy: "©", deg: "°", times: "×",
                  middot: "·", ndash: "–", mdash: "—", hellip: "…", rarr: "→", larr: "←", le: "≤", ge: "≥", ne: "≠",
                  plusmn: "±"};
const DEPTH = 8;

export function link(address, ...children) {
  if (!SAFE_LINK.test(address)) return make("span", {}, ...children);
  return make("a", {href: address, target: "_blank", rel: "noopener noreferrer nofollow"}, ...children);
}

// Pictures of other servers are not loaded: that would tell them who reads this. They become links.
function picture(alt, address) {
  if (SAFE_PICTURE.test(address)) return make("img", {src: address, alt: alt || "Picture", className: "written"});
  return link(address, "🖼 " + (alt || address));
}

function entity(name) {
  if (!name.startsWith("#")) return ENTITIES[name] ?? null;
  const code = name[1] === "x" || name[1] === "X" ? parseInt(name.slice(2), 16) : parseInt(name.slice(1), 10);
  return code > 31 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000) ? String.fromCodePoint(code) : null;
}

// A rule: what it matches at a position (all are bounded, so that no text takes long), and what that becomes. `before`
// is the character before it. null: the rule does not hold here.
const wordy = (character) => /[\p{L}\p{N}_]/u.test(character ?? "");
const wrap = (name) => (found, depth) => [make(name, {}, ...inline(found[1], depth + 1))];
// Names of Python stay as they are: snake_case, __init__.py, x.__init__().
const isName = (before, after) => wordy(before) || before === "." || wordy(after[0]) || after[0] === "(" ||
  (after[0] === "." && wordy(after[1]));
const underscore = (name) => (found, depth, before, after) => (isName(before, after) ? null : wrap(name)(found, depth));

const RULES = [
  [/(`+)([^`](?:[^]{0,4000}?[^`])?)\1(?!`)/y, (f) => [make("code", {textContent: f[2].replace(/^ (.*) $/s, "$1")})]],
  [/\\\(([^]{1,2000}?)\\\)/y, (f) => formula(f[1], false, f[0])],
  [/\\\[([^]{1,4000}?)\\\]/y, (f) => formula(f[1], true, f[0])],
  [/\$\$([^$]{1,4000}?)\$\$/y, (f) => formula(f[1], true, f[0])],
  [/\$(?=[^\s$])([^$\n]{0,1000}?[^\s$\\])\$(?![\d$])/y,
   (f, depth, before) => (wordy(before) ? null : formula(f[1], false, f[0]))],
  [/\\([\\`*_{}[\]()#+\-.!~|>$<&])/y, (f) => [f[1]]],
  [/\*\*\*(?=\S)([^]{0,4000}?[^\s*])\*\*\*(?!\*)/y, (f, depth) => [make("strong", {}, ...wrap("em")(f, depth))]],
  [/\*\*(?=\S)([^]{0,4000}?\S)\*\*(?!\*(?!\*))/y, wrap("strong")],
  [/__(?=\S)([^]{0,4000}?\S)__/y, underscore("strong")],
  [/~~(?=\S)([^]{0,4000}?\S)~~/y, wrap("s")],
  [/\*(?=[^\s*])((?:[^*]|\*\*){0,4000}?[^\s*])\*(?!\*)/y, wrap("em")],
  [/_(?=[^\s_])([^]{0,4000}?[^\s_])_(?!_)/y, underscore("em")],
  [/!\[([^\]\n]{0,1000})\]\(\s*<?([^\s()<>]+(?:\([^\s()<>]*\)[^\s()<>]*)?)>?(?:\s+"[^"\n]*")?\s*\)/y,
   (f) => [picture(f[1], f[2])]],
  [/\[([^\]\n]{1,1000})\]\(\s*<?([^\s()<>]+(?:\([^\s()<>]*\)[^\s()<>]*)?)>?(?:\s+"[^"\n]*")?\s*\)/y,
   (f, depth) => [link(f[2], ...inline(f[1], depth + 1))]],
  [/<(https?:\/\/[^\s<>]{1,2000})>/y, (f) => [link(f[1], f[1])]],
  [/https?:\/\/[^\s<>()\]]{1,2000}(?:\([^\s()<>]{1,200}\)[^\s<>()\]]{0,500})*(?<![.,;:!?'"*_])/y,
   (f, depth, before) => (wordy(before) ? null : [link(f[0], f[0])])],
  [/<br\s*\/?>/iy, () => [make("br")]],
  [/<(sub|sup|kbd|mark)>([^<]{1,500})<\/\1>/iy, (f, depth) => [make(f[1].toLowerCase(), {}, ...inline(f[2], depth + 1))]],
  [/&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-z]{2,8});/y, (f) => (entity(f[1]) === null ? null : [entity(f[1])])],
];
const STARTS = /[`\\$*_~![<h&]/g;

export function inline(text, depth = 0) {
  const nodes = [];
  let plain = "";
  const flush = () => { if (plain) nodes.push(plain); plain = ""; };
  for (let at = 0; at < text.length;) {
    STARTS.lastIndex = at;
    const start = depth < DEPTH ? STARTS.exec(text) : null;
    if (!start) { plain += text.slice(at); break; }
    plain += text.slice(at, start.index);
    at = start.index;
    const {made, length} = apply(text, at, depth);
    if (made) { flush(); nodes.push(...made); } else plain += text.slice(at, at + length);
    at += length;
  }
  flush();
  return nodes;
}

function apply(text, at, depth) {
  for (const [pattern, build] of RULES) {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    const made = found && build(found, depth, text[at - 1], text.slice(at + found[0].length, at + found[0].length + 2));
    if (made) return {made, length: found[0].length};
  }
  // A run of the same mark that opened nothing is passed as a whole: `__init__` stays as it is.
  const run = /^(`+|\*+|_+|~+|\$+)/.exec(text.slice(at, at + 200));
  return {made: null, length: run ? run[0].length : 1};
}
