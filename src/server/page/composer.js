// How is a message written? The box, what is attached, an earlier message that is edited, messages that wait their
// turn, and how much of the context is in use.
import {readFiles} from "./attachments.js";
import {addMessage, newId, parentOf, shownPath} from "./conversation.js";
import {$, icon, iconButton, make} from "./dom.js";
import {draftOf, keyOf, setDraft, takeDraft} from "./drafts.js";
import {documentButton} from "./messages.js";
import {announce, notice} from "./notices.js";
import {sentImages, textOf} from "./request.js";
import {settings} from "./settings.js";
import {listen, state, tell} from "./state.js";
import {keep} from "./store.js";
import {answer, isBusy, running, stop} from "./stream.js";

let draft = {images: [], documents: []};  // the text is in the box
let editing = null;                       // {conversation, message, before}: `before` is the draft put aside

// ---- The box.

function grow() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = prompt.scrollHeight + "px";
  ready();
}

const hasContent = () => Boolean($("prompt").value.trim() || draft.images.length || draft.documents.length);

function ready() {
  const busy = isBusy(state.current);
  $("stop").hidden = !running(state.current);
  $("send").hidden = busy && !hasContent();
  $("send").disabled = !hasContent() || (busy && Boolean(editing));
  const label = editing ? "Send the edited message" : busy ? "Send when the answer has ended" : "Send";
  $("send").setAttribute("aria-label", label);
  $("send").title = label;
  meter();
}

function showAttached() {
  const without = (kind, i) => () => {
    draft[kind] = draft[kind].filter((_, j) => j !== i);
    keepContent();
    showAttached();
    $("prompt").focus();
  };
  const remover = (label, kind, i) => make("button", {
    type: "button", className: "remove", "aria-label": label, title: label, onclick: without(kind, i)}, icon("close"));
  $("attached").replaceChildren(
    ...draft.images.map((image, i) => make("figure", {}, make("img", {src: image.src, alt: `Picture ${i + 1} to send`}),
                                           remover(`Remove picture ${i + 1}`, "images", i))),
    ...draft.documents.map((each, i) => make("figure", {}, documentButton(each, "Show " + each.name),
                                             remover("Remove " + each.name, "documents", i))));
  ready();
}

function fill(content) {
  draft = {images: [...content.images ?? []], documents: [...content.documents ?? []]};
  $("prompt").value = content.text ?? "";
  showAttached();
  grow();
}

function take(content) {
  fill(content);
  keepContent();
}

const content = () => ({text: $("prompt").value.trim(), images: draft.images, documents: draft.documents});

function keepContent(attached = true) {
  const inBox = {...draft, text: $("prompt").value};
  const kept = editing ? {...editing.before, edited: {...inBox, id: editing.message.id}} : {...inBox, edited: null};
  setDraft(keyOf(state.current), kept, attached);
}

let reading = Promise.resolve();  // files are added in the order in which they came

export function attach(files) {
  const key = keyOf(state.current);
  reading = reading.then(async () => {
    const {images, documents} = await readFiles(files);
    const here = key === keyOf(state.current);
    const kept = draftOf(key);
    const into = here ? draft : kept.edited ?? kept;  // the conversation may have been left meanwhile
    into.images.push(...images);
    into.documents.push(...documents);
    if (!here) { setDraft(key, kept); return; }
    keepContent();
    showAttached();
    $("prompt").focus();
  });
  return reading;
}

// ---- Editing an earlier message.

export function edit(conversation, message) {
  if (editing) cancelEdit();
  editing = {conversation, message, before: content()};
  take(message);
  showEditing();
  $("prompt").focus();
}

// Also where the log is drawn anew.
export function showEditing() {
  $("editing").hidden = !editing;
  for (const node of document.querySelectorAll(".message.edited")) node.classList.remove("edited");
  if (editing) $("log").querySelector(`[data-id="${editing.message.id}"]`)?.classList.add("edited");
}

// Whether there was something to cancel.
export function cancelEdit() {
  if (!editing) return false;
  const {before} = editing;
  editing = null;
  showEditing();
  take(before);
  announce("The message stays as it was.");
  return true;
}

// ---- Sending, and waiting for it.

export function joinToList(conversation) {
  if (!state.conversations.includes(conversation)) state.conversations.push(conversation);
}

async function ask(conversation, parent, message, quiet = false) {
  const added = addMessage(conversation, parent, {role: "user", ...message});
  joinToList(conversation);
  await answer(conversation, added, quiet);
}

export async function submit() {
  const conversation = state.current;
  await reading;
  if (conversation !== state.current || !hasContent()) return;
  const message = content();
  if (editing) {
    if (isBusy(conversation)) return;
    const {message: old, before} = editing;
    editing = null;
    showEditing();
    take(before);
    await ask(conversation, parentOf(conversation, old), message);
    return;
  }
  take({});
  if (isBusy(conversation)) {
    conversation.queue.push({id: newId(), ...message});
    conversation.touched = Date.now();
    tell("show");
    announce("It is sent when the answer has ended.");
    await keep(conversation);
    return;
  }
  await ask(conversation, shownPath(conversation).at(-1), message);
}

function dequeue(conversation, waiting) {
  conversation.queue = conversation.queue.filter((each) => each.id !== waiting.id);
  conversation.touched = Date.now();
}

async function sendQueued(conversation, waiting, quiet = false) {
  if (isBusy(conversation) || !conversation.queue.some((each) => each.id === waiting.id)) return;
  dequeue(conversation, waiting);
  const {id, ...message} = waiting;
  await ask(conversation, shownPath(conversation).at(-1), message, quiet);
}

export function queueNodes(conversation) {
  const remove = (waiting) => () => {
    dequeue(conversation, waiting);
    keep(conversation);
    tell("show");
    if (!hasContent()) take(waiting); else notice("The message was removed.", {action: {label: "Undo", run: () => {
      conversation.queue.push(waiting);
      conversation.touched = Date.now();
      keep(conversation);
      tell("show");
    }}});
  };
  return conversation.queue.map((waiting) => make("div", {className: "message user queued"},
    make("div", {className: "bubble", textContent: waiting.text || "(attachments)"}),
    make("div", {className: "actions"}, make("span", {className: "stats", textContent: "waits for the answer"}),
      isBusy(conversation) ? null : make("button", {type: "button", className: "small", textContent: "Send now",
                                                    onclick: () => sendQueued(conversation, waiting)}),
      iconButton("close", "Take back the waiting message", remove(waiting)))));
}

// After a whole answer, its calls of MCP servers included, the next message goes; after one that was stopped or failed
// the user decides.
function ended(conversation, message) {
  const next = conversation.queue[0];
  const goesOn = message.calls?.some((call) => call.server);
  if (next && !message.state && !message.error && !conversation.removed && !goesOn) sendQueued(conversation, next, true);
}

// ---- Another conversation is shown: its draft comes with it.

let shown = null;

function showDraft() {
  if (shown === state.current) { ready(); return; }
  shown = state.current;
  const {edited, ...before} = draftOf(keyOf(shown));
  const message = edited && shown.messages.find(({id}) => id === edited.id);
  editing = message ? {conversation: shown, message, before} : null;
  fill(message ? edited : before);
}

// ---- How much of the context is in use.

function meter() {
  const most = state.model?.max_model_len;
  const last = shownPath(state.current).findLast((message) => message.usage);
  const used = last ? last.usage.prompt + last.usage.completion : 0;
  // A token is about four characters; the server counts exactly with the next answer.
  const {text, documents} = content();
  const pictures = sentImages(draft).length * (Number(settings.image_budget) || state.model?.image_budget || 0);
  const estimate = Math.ceil(textOf({text, documents}).length / 4) + pictures;
  const total = used + estimate;
  $("context").hidden = !most || total === 0;
  if (!most) return;
  $("context-meter").max = most;
  $("context-meter").value = Math.min(total, most);
  const [taken, all] = [total, most].map((n) => n.toLocaleString("en"));
  $("context-text").textContent = `${estimate ? "about " : ""}${taken} of ${all} tokens`;
  $("context").classList.toggle("full", total > 0.9 * most);
}

function bindFiles() {
  $("attach").onclick = () => $("files").click();
  $("files").onchange = (event) => { attach([...event.target.files]); event.target.value = ""; };
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length && !event.target.closest?.("dialog")) { event.preventDefault(); attach(files); }
  });
  let depth = 0;
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  const entered = (change) => (event) => {
    if (!carriesFiles(event)) return;
    depth = Math.max(0, depth + change);
    $("drop").hidden = depth === 0;
  };
  document.addEventListener("dragenter", entered(1));
  document.addEventListener("dragleave", entered(-1));
  document.addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    depth = 0;
    $("drop").hidden = true;
    if (event.dataTransfer.files.length) { event.preventDefault(); attach([...event.dataTransfer.files]); }
  });
}

export function bindComposer() {
  $("composer").onsubmit = (event) => { event.preventDefault(); submit(); };
  $("stop").onclick = () => stop(state.current);
  $("cancel-edit").onclick = () => { cancelEdit(); $("prompt").focus(); };
  $("prompt").oninput = () => { grow(); keepContent(false); };
  $("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  };
  bindFiles();
  listen("show", showDraft);
  listen("draft", takeDraft);
  for (const name of ["running", "model", "settings"]) listen(name, ready);
  listen("ended", (conversation, message) => { ready(); ended(conversation, message); });
}
