// How is a picture, or a document's text, looked at in full?
import {$, make} from "./dom.js";

function open(node, label) {
  $("viewer-content").replaceChildren(node);
  $("viewer").setAttribute("aria-label", label);
  $("viewer").showModal();
}

export function viewPicture(source, label) { open(make("img", {src: source, alt: label}), label); }

export function viewDocument({name, text}) {
  open(make("pre", {textContent: text, tabIndex: 0, role: "region", "aria-label": name}), name);
}

export function bindViewer() {
  $("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
  $("viewer").addEventListener("close", () => $("viewer-content").replaceChildren());
}
