// How does the page say that something happened? Each notice is visible, is read out, and can be closed.
import {$, iconButton, make} from "./dom.js";

const SHORT = 6000, WITH_ACTION = 12000;  // milliseconds; what failed stays until it is closed
const MOST = 50;                          // at a time: someone may drop a folder of files that cannot be read

// `action`: {label, run}. A notice replaces an earlier one of the same `key`.
export function notice(text, {failed = false, action = null, key = text, stays = failed} = {}) {
  const place = document.querySelector("dialog[open] .notices") ?? $("notices");  // what a dialog covers is not seen
  for (const old of document.querySelectorAll(".notice")) if (old.dataset.key === key) old.remove();
  const role = failed ? "alert" : "status";
  const node = make("div", {className: "notice" + (failed ? " failed" : ""), role, "data-key": key},
                    make("p", {textContent: text}));
  const close = () => node.remove();
  if (action) {
    node.append(make("button", {type: "button", className: "notice-action", textContent: action.label,
                                onclick: () => { close(); action.run(); }}));
  }
  node.append(iconButton("close", "Close this notice", close));
  place.append(node);
  while (place.children.length > MOST) place.firstChild.remove();
  node.scrollIntoView({block: "nearest"});
  if (!stays) setTimeout(close, action ? WITH_ACTION : SHORT);
  return close;
}

// What a dialog said stays after it.
export function bindNotices() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("close", () => $("notices").append(...dialog.querySelectorAll(".notice")));
  }
}

// For screen readers alone: what everybody else sees anyway.
export function announce(text) { $("status").textContent = text; }

export const copied = (text, failed) => (failed ? notice(text, {failed}) : announce(text));
