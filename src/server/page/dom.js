// How are elements made? Nothing here takes HTML: text becomes text nodes.

export const $ = (id) => document.getElementById(id);

export function make(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") node.setAttribute(key, value); else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function icon(name, className = "icon") {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", className);
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", "#i-" + name);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, onclick, properties = {}) {
  return make("button", {type: "button", className: "ghost", title: label, "aria-label": label, onclick, ...properties},
              icon(name));
}

// Makes the children of `container` equal to `nodes`. What is equal already stays in place, and with it what is
// selected and unfolded there.
export function patch(container, nodes) {
  nodes.forEach((node, i) => {
    const old = container.childNodes[i];
    if (!old) container.append(node);
    else if (!old.isEqualNode(node)) old.replaceWith(node);
  });
  while (container.childNodes.length > nodes.length) container.lastChild.remove();
}

export const count = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;

export const isPhone = () => matchMedia("(max-width: 760px)").matches;

// navigator.clipboard exists only over https and on this machine; elsewhere the older way still works.
async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try { return await navigator.clipboard.writeText(text); } catch { /* not permitted: the older way */ }
  }
  const area = make("textarea", {value: text, className: "sr-only", "aria-hidden": "true", tabIndex: -1});
  const focused = document.activeElement;
  (focused?.closest("dialog") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!done) throw new Error("the browser does not allow it");
}

// `said(text, failed)` tells people how it went.
export function copyButton(text, label, said) {
  const button = iconButton("copy", label, async () => {
    try {
      await copyText(text());
      button.replaceChildren(icon("check"));
      setTimeout(() => button.replaceChildren(icon("copy")), 1200);
      said("Copied.", false);
    } catch (error) {
      said("This could not be copied: " + error.message + ".", true);
    }
  });
  return button;
}

// Offers `blob` as a file to keep.
export function download(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = make("a", {href: address, download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
