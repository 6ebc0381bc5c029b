// How does a message look, and what can be done with it?
import {edit} from "./composer.js";
import {choose, isCut, isUnderWay, siblings} from "./conversation.js";
import {$, copyButton, icon, iconButton, isPhone, make, patch} from "./dom.js";
import {markdown} from "./markdown.js";
import {announce, copied} from "./notices.js";
import {tell} from "./state.js";
import {isElsewhere, keep, keepAnswer} from "./store.js";
import {answer, answerAgain, goOn, isBusy, running} from "./stream.js";
import {canReturn, decide, isAsked, sendResults} from "./tools.js";
import {viewDocument, viewPicture} from "./viewer.js";

// < 1/2 >: the other versions of a message.
function versions(conversation, message) {
  const all = siblings(conversation, message);
  if (all.length < 2) return null;
  const at = all.indexOf(message);
  const go = (to) => () => {
    choose(conversation, all[to]);
    keep(conversation);
    tell("show", {anchor: all[to], focus: true});
    announce(`Version ${to + 1} of ${all.length}`);
  };
  return make("span", {className: "versions"},
    iconButton("back", "Earlier version", go(at - 1), {disabled: at === 0}),
    make("span", {textContent: `${at + 1}/${all.length}`, className: "version"}),
    iconButton("forward", "Later version", go(at + 1), {disabled: at === all.length - 1}));
}

export function documentButton(file, label) {
  const onclick = () => viewDocument(file);
  return make("button", {type: "button", className: "document", "aria-label": label, onclick},
              icon("document"), make("span", {textContent: file.name}));
}

function userAttachments(message) {
  const pictures = (message.images ?? []).map((image, i) => make("button", {
    type: "button", className: image.refused ? "refused" : "",
    "aria-label": `Show picture ${i + 1} large` + (image.refused ? " (left out)" : ""),
    onclick: () => viewPicture(image.src, `Picture ${i + 1} that you sent`)},
    make("img", {src: image.src, alt: `Picture ${i + 1} that you sent`})));
  const documents = (message.documents ?? []).map((each) => documentButton(each, "Show " + each.name));
  return pictures.length + documents.length ? make("div", {className: "pictures"}, ...pictures, ...documents) : null;
}

export function userNode(conversation, message) {
  return make("article", {className: "message user", "data-id": message.id},
    make("h2", {className: "sr-only", textContent: "You"}),
    userAttachments(message),
    message.text ? make("div", {className: "bubble", textContent: message.text}) : null,
    make("div", {className: "actions"}, versions(conversation, message),
      iconButton("edit", "Edit and ask again", () => edit(conversation, message)),
      message.text ? copyButton(() => message.text, "Copy your message", copied) : null));
}

function hostOf(url) {
  try { return new URL(url).host; } catch { return url; }
}

const CHOICES = {run: "Run", refuse: "Don't run", always: "Always in this conversation"};

// What the user says to a call of an MCP server's tool.
function choiceNode(conversation, message, at) {
  const call = message.calls[at];
  const take = (choice) => () => {
    decide(conversation, message, at, choice);
    if (!isPhone()) $("prompt").focus();  // the button goes away
  };
  const why = {stopped: "It was stopped. ", running: "It was interrupted, and may have run. "}[call.state] ?? "";
  return make("div", {className: "tool-choice", role: "group", "aria-label": "Call of " + call.tool},
    make("p", {textContent: `${why}Run it on ${hostOf(call.server)}?`}),
    ...Object.entries(CHOICES).map(([choice, label]) => make("button", {
      type: "button", className: choice === "run" ? "primary" : "small", textContent: label, onclick: take(choice)})));
}

function toolNode(conversation, message, at) {
  const call = message.calls[at];
  let shown = call.arguments;
  try { shown = JSON.stringify(JSON.parse(call.arguments), null, 2); } catch { /* as it came */ }
  const node = make("div", {className: "tool"},
    make("div", {className: "tool-head"}, icon("tool"), call.tool ?? call.name,
         call.server ? make("span", {className: "tool-server", textContent: hostOf(call.server)}) : null),
    make("pre", {textContent: shown, tabIndex: 0, role: "region", "aria-label": "Arguments of " + call.name}));
  if (isAsked(conversation, message, call) && !isBusy(conversation)) {
    node.append(choiceNode(conversation, message, at));
  } else if (call.server && !message.sent && call.state !== "done") {
    const said = call.state === "running" ? "Running…" : "Waits…";
    node.append(make("div", {className: "result", textContent: said}));
  } else if (message.sent || call.server) {
    node.append(make("div", {className: "result", tabIndex: 0, role: "region", "aria-label": "Result of " + call.name,
                             textContent: call.result || ""}));
  } else {
    const store = (event) => {
      message.calls[at].result = event.target.value;  // another tab may have replaced the calls
      ++message.rev;
      keepAnswer(conversation, message);
    };
    node.append(make("label", {}, "What it returned",
                     make("textarea", {rows: 2, className: "code", textContent: call.result || "", oninput: store})));
  }
  return node;
}

const unfolded = new Set();  // messages whose thought is open

function thoughtNode(message, busy) {
  const thinking = busy && !message.text && !message.calls?.length;
  const node = make("details", {className: "thought", open: unfolded.has(message.id)},
    make("summary", {}, icon("thought"), thinking ? "Thinking…" : "Thought"),
    make("div", {textContent: message.thinking}));
  node.addEventListener("toggle", () => (node.open ? unfolded.add(message.id) : unfolded.delete(message.id)));
  return node;
}

function bodyNodes(conversation, message, busy) {
  const nodes = [];
  if (message.thinking) nodes.push(thoughtNode(message, busy));
  if (message.text) nodes.push(...markdown(message.text));
  for (const node of nodes) {
    if (!node.querySelectorAll) continue;
    const blocks = node.matches("[data-copy]") ? [node] : node.querySelectorAll("[data-copy]");
    for (const block of blocks) block.append(copyButton(() => block.dataset.copy, "Copy the code", copied));
  }
  (message.calls ?? []).forEach((_, at) => nodes.push(toolNode(conversation, message, at)));
  if (busy && !message.text && !message.thinking && !message.calls?.length) {
    nodes.push(make("span", {className: "typing", role: "img", "aria-label": "The answer is on its way"},
                    make("i"), make("i"), make("i")));
  }
  if (message.error) nodes.push(make("div", {className: "failed", role: "alert", textContent: message.error}));
  return nodes;
}

function textButton(label, onclick) {
  return make("button", {type: "button", className: "small", textContent: label, onclick});
}

function answerActions(conversation, message) {
  const actions = [];
  if (canReturn(message)) {
    actions.push(make("button", {type: "button", className: "primary send-results", textContent: "Return to the model",
                                 onclick: () => sendResults(conversation, message)}));
  }
  actions.push(versions(conversation, message));
  if (message.text) actions.push(copyButton(() => message.text, "Copy the answer", copied));
  actions.push(iconButton("redo", "Answer again", () => answerAgain(conversation, message)));
  if (isCut(message) && !isBusy(conversation)) actions.push(textButton("Continue", () => goOn(conversation, message)));
  return actions;
}

function isBeingWritten(conversation, message) {
  return running(conversation)?.message === message || (isUnderWay(message) && isElsewhere(message));
}

function assistantNode(conversation, message) {
  const body = make("div", {className: "body"});
  const actions = make("div", {className: "actions"});
  const node = make("article", {className: "message assistant", "data-id": message.id},
    icon("gem", "icon gem"), make("div", {}, make("h2", {className: "sr-only", textContent: "Gemma"}), body, actions));
  node.update = () => {
    const busy = isBeingWritten(conversation, message);
    node.classList.toggle("busy", busy);
    patch(body, bodyNodes(conversation, message, busy));
    const stats = message.stats ? make("span", {className: "stats", textContent: message.stats}) : null;
    const possible = busy ? [versions(conversation, message)] : answerActions(conversation, message);
    patch(actions, [...possible, stats].filter((each) => each));
  };
  node.update();
  return node;
}

export function messageNode(conversation, message) {
  return message.role === "user" ? userNode(conversation, message) : assistantNode(conversation, message);
}

// Where a question has no answer (the page went away at once), it can be asked again.
export function unansweredNode(conversation, message) {
  return make("div", {className: "unanswered"}, textButton("Answer this", () => answer(conversation, message)));
}
