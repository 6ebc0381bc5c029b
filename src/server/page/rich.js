// How do formulas and code get their looks? KaTeX and highlight.js, where the program was built with them, give HTML.
// It is not trusted: it is read into a document of its own, and only elements and attributes that are named here are
// copied.
import {make} from "./dom.js";
import {libraries} from "./libraries.js";
import {tell} from "./state.js";

const SOURCES = {katex: ["katex.min.js", "katex.min.css"], highlight: ["highlight.min.js"], pdf: ["pdf.js"]};
const loads = new Map();

// Resolves once the library is there, which is asked for at the first need; rejects where there is none.
export function load(name) {
  if (!libraries[name]) return Promise.reject(new Error("the program was built without it"));
  if (!loads.has(name)) {
    loads.set(name, Promise.all(SOURCES[name].map((address) => new Promise((resolve, reject) => {
      const node = address.endsWith(".css") ? make("link", {rel: "stylesheet", href: address})
                                            : make("script", {src: address});
      node.onload = resolve;
      node.onerror = () => reject(new Error(address + " could not be loaded"));
      document.head.append(node);
    }))));
  }
  return loads.get(name);
}

// Whether it is there now. If not, it is loaded, and "libraries" is told when it has come.
function ready(name, there) {
  if (there()) return true;
  if (libraries[name] && !loads.has(name)) load(name).then(() => tell("libraries"), () => {});
  return false;
}

const HTML = new Set(["SPAN"]);
const OTHER = new Set(["svg", "path", "line", "math", "semantics", "annotation", "mrow", "mi", "mo", "mn", "ms", "mtext",
  "mspace", "msup", "msub", "msubsup", "mfrac", "msqrt", "mroot", "munder", "mover", "munderover", "mtable", "mtr", "mtd",
  "mlabeledtr", "mstyle", "mpadded", "mphantom", "menclose", "mmultiscripts", "mprescripts", "none"]);
const ATTRIBUTES = new RegExp("^(class|aria-hidden|viewBox|width|height|preserveAspectRatio|d|[xy][12]|stroke-width|" +
  "encoding|display|math\\w+|stretchy|fence|separator|[lr]space|m(in|ax)size|(column|row)(align|spacing|lines)|" +
  "linethickness|scriptlevel|displaystyle|accent(under)?|depth|voffset|movablelimits|symmetric|largeop|notation|side)$");

function copied(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data;
  const html = node.namespaceURI === "http://www.w3.org/1999/xhtml";
  if (!(html ? HTML.has(node.tagName) : OTHER.has(node.localName))) return null;
  const copy = document.createElementNS(node.namespaceURI, node.localName);
  for (const {name, value} of node.attributes) {
    if (name === "data-style") copy.style.cssText = value;  // a style attribute would be against the page's policy
    else if (ATTRIBUTES.test(name)) copy.setAttribute(name, value);
  }
  copy.append(...copiedAll(node));
  return copy;
}

const copiedAll = (node) => [...node.childNodes].map(copied).filter((child) => child !== null);

// Both libraries escape quotation marks in text, so what is replaced are attributes.
export function safeCopy(html) {
  const quiet = html.replaceAll(' style="', ' data-style="');
  return copiedAll(new DOMParser().parseFromString(quiet, "text/html").body);
}

const known = new Map();  // a formula or code, and its HTML: an answer that grows is drawn many times

function remembered(key, compute) {
  if (!known.has(key)) {
    if (known.size > 500) known.clear();
    known.set(key, compute());
  }
  return known.get(key);
}

// A formula in TeX; `source` is how it was written, which is shown where KaTeX is absent or cannot read it.
export function formula(tex, display, source) {
  const plain = () => [make("code", {className: "formula", textContent: source})];
  if (tex.length > 5000 || !ready("katex", () => window.katex)) return plain();
  const html = remembered("tex" + display + tex, () => {
    try {
      return window.katex.renderToString(tex, {displayMode: display, trust: false, throwOnError: true, strict: "ignore",
                                               maxSize: 20, maxExpand: 300});
    } catch {
      return null;
    }
  });
  if (html === null) return plain();
  const nodes = safeCopy(html);
  if (!display) return nodes;
  return [make("span", {className: "display", tabIndex: 0, role: "group", "aria-label": "Formula"}, ...nodes)];
}

export function coloured(code, language) {
  if (!language || code.length > 50000 || !ready("highlight", () => window.hljs)) return [code];
  if (!window.hljs.getLanguage(language)) return [code];
  const html = remembered("code" + language + "\n" + code, () => {
    try { return window.hljs.highlight(language, code, true).value; } catch { return null; }
  });
  return html === null ? [code] : safeCopy(html);
}
