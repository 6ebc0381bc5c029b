// How is the shown branch of the conversation kept on the screen while it changes?
import {$, isPhone, make} from "./dom.js";
import {queueNodes, showEditing} from "./composer.js";
import {shownPath} from "./conversation.js";
import {messageNode, unansweredNode} from "./messages.js";
import {listen, state} from "./state.js";
import {isBusy} from "./stream.js";

function nearEnd() {
  const scroll = $("scroll");
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
}

export function toEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
  showJump();
}

function showJump() { $("jump").hidden = nearEnd() || !$("log").children.length; }

let shown = null;  // the conversation on the screen

// `anchor`: a message that shall be in sight; `focus`: the way to its other versions is at hand.
function show({anchor = null, focus = false} = {}) {
  const conversation = state.current;
  const follow = shown !== conversation || nearEnd();
  const before = $("scroll").scrollTop;
  const path = shownPath(conversation);
  const last = path.at(-1);
  $("title").textContent = conversation.title || "New chat";
  document.title = (conversation.title ? conversation.title + " – " : "") + "Gemma 4";
  $("welcome").hidden = path.length > 0;
  $("log").replaceChildren(...path.map((message) => messageNode(conversation, message)),
                           ...last?.role === "user" && !isBusy(conversation) ? [unansweredNode(conversation, last)] : [],
                           ...queueNodes(conversation));
  showEditing();
  const fresh = shown !== conversation;
  shown = conversation;
  if (anchor) {
    $("log").querySelector(`[data-id="${anchor.id}"]`)?.scrollIntoView({block: "nearest"});
    if (focus) $("log").querySelector(`[data-id="${anchor.id}"] .versions button:not(:disabled)`)?.focus();
  } else if (follow) {
    toEnd();
  } else {
    $("scroll").scrollTop = before;
  }
  if (fresh && !isPhone()) $("prompt").focus();
  showJump();
}

const waiting = new Map();  // messages to draw in the next frame: their conversation
let drawnUntil = 0, pause = 0;

// Long answers take longer to draw; drawing takes at most a fifth of the time.
function draw() {
  if (performance.now() < drawnUntil + pause) { requestAnimationFrame(draw); return; }
  const began = performance.now();
  const follow = nearEnd();
  for (const message of waiting.keys()) $("log").querySelector(`[data-id="${message.id}"]`)?.update?.();
  waiting.clear();
  if (follow) $("scroll").scrollTop = $("scroll").scrollHeight;
  showJump();
  drawnUntil = performance.now();
  pause = 4 * (drawnUntil - began);
}

function drawSoon(conversation, message) {
  if (conversation !== state.current) return;
  if (!waiting.size) requestAnimationFrame(draw);
  waiting.set(message, conversation);
}

export function bindLog() {
  listen("show", show);
  listen("message", drawSoon);
  listen("libraries", () => show());
  listen("ended", (conversation) => { if (conversation === state.current) show(); });
  $("scroll").addEventListener("scroll", showJump, {passive: true});
  new ResizeObserver(showJump).observe($("log"));
  $("jump").onclick = () => { toEnd(); $("prompt").focus(); };
  $("jump").append(make("span", {className: "sr-only", textContent: "Jump to the end"}));
}
