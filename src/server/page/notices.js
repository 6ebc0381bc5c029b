// How does the page say that something happened? Each notice is visible, is read out, and can be closed.
import {$, iconButton, make} from "./dom.js";

const SHORT = 6000, WITH_ACTION = 12000;  // milliseconds; what failed stays until it is closed

// `action`: {label, run}. A notice replaces an earlier one of the same `key`.
export function notice(text, {failed = false, action = null, key = text, stays = failed} = {}) {
  for (const old of [...$("notices").children]) if (old.dataset.key === key) old.remove();
  const node = make("div", {className: "notice" + (failed ? " failed" : ""), role: failed ? "alert" : "status", "data-key": key},
                    make("p", {textContent: text}));
  const close = () => node.remove();
  if (action) {
    node.append(make("button", {type: "button", className: "notice-action", textContent: action.label,
                                onclick: () => { close(); action.run(); }}));
  }
  node.append(iconButton("close", "Close this notice", close));
  $("notices").append(node);
  while ($("notices").children.length > 4) $("notices").firstChild.remove();
  if (!stays) setTimeout(close, action ? WITH_ACTION : SHORT);
  return close;
}

// For screen readers alone: what everybody else sees anyway.
export function announce(text) { $("status").textContent = text; }

export const copied = (text, failed) => (failed ? notice(text, {failed}) : announce(text));
