// Which conversations are there? The list: search, pin, delete with undo, and what is being answered.
import {newConversation} from "./conversation.js";
import {openConversationDialog} from "./conversation_dialog.js";
import {$, icon, iconButton, isPhone, make} from "./dom.js";
import {notice} from "./notices.js";
import {listen, state, tell} from "./state.js";
import {keep, remove} from "./store.js";
import {isBusy, stop} from "./stream.js";

const OPEN = "gemma4-open";  // the conversation that a reload shows again

export function open(conversation) {
  state.current = conversation;
  if (conversation.unread) { delete conversation.unread; keep(conversation); }
  try { sessionStorage.setItem(OPEN, conversation.id); } catch { /* a reload shows a new chat */ }
  tell("list");
  tell("show");
}

export function openLast() {
  let id = null;
  try { id = sessionStorage.getItem(OPEN); } catch { /* not allowed */ }
  open(state.conversations.find((each) => each.id === id) ?? newConversation());
}

// Takes a conversation from the screen, not from the store.
export function drop(id) {
  const conversation = state.conversations.find((each) => each.id === id);
  if (!conversation) return null;
  conversation.removed = true;
  stop(conversation);
  state.conversations = state.conversations.filter((each) => each !== conversation);
  if (state.current === conversation) open(newConversation()); else tell("list");
  return conversation;
}

async function restore(conversations) {
  for (const conversation of conversations) {
    delete conversation.removed;
    state.conversations.push(conversation);
    await keep(conversation);
  }
  if (conversations.length === 1) open(conversations[0]); else tell("list");
}

export async function removeConversations(conversations) {
  const dropped = conversations.map((conversation) => drop(conversation.id)).filter((each) => each);
  if (!dropped.length) return;
  await remove(dropped);
  const what = dropped.length === 1 ? `“${dropped[0].title}” was deleted.`
                                    : `${dropped.length} conversations were deleted.`;
  notice(what, {action: {label: "Undo", run: () => restore(dropped)}});
}

function matches(conversation, words) {
  const text = [conversation.title, ...conversation.messages.map((message) => message.text)].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

function item(conversation) {
  const shown = conversation === state.current;
  const mark = (kind, said, ...inside) =>
    make("span", {className: "mark " + kind}, ...inside, make("span", {className: "sr-only", textContent: said + ". "}));
  const marks = [];
  if (conversation.pinned) marks.push(mark("pinned", "Pinned", icon("pin")));
  if (isBusy(conversation)) marks.push(mark("writing", "Being answered"));
  else if (conversation.unread) marks.push(mark("unread", "New answer"));
  return make("li", {className: shown ? "current" : ""},
    make("button", {className: "open", type: "button", title: conversation.title,
                    "aria-current": shown ? "true" : "false", onclick: () => { open(conversation); closeSidebar(); }},
         ...marks, make("span", {className: "name", textContent: conversation.title})),
    iconButton("more", "Options of the conversation " + conversation.title, () => openConversationDialog(conversation)),
    iconButton("trash", "Delete the conversation " + conversation.title, () => removeConversations([conversation])));
}

function list() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter((word) => word);
  const found = state.conversations.filter((conversation) => matches(conversation, words))
    .sort((a, b) => b.pinned - a.pinned || b.changed - a.changed);
  $("conversations").replaceChildren(...found.map(item));
  $("search-row").hidden = state.conversations.length < 2 && !words.length;
  $("nothing-found").hidden = found.length > 0 || !words.length;
}

export function closeSidebar() {
  document.querySelector(".app").classList.remove("shown");
  $("scrim").hidden = true;
  if (isPhone()) $("open-sidebar").setAttribute("aria-expanded", "false");
}

function toggleSidebar() {
  const app = document.querySelector(".app");
  if (isPhone()) {
    const shown = app.classList.toggle("shown");
    $("scrim").hidden = !shown;
    $("open-sidebar").setAttribute("aria-expanded", String(shown));
    if (shown) $("new-chat").focus();
  } else {
    $("open-sidebar").setAttribute("aria-expanded", String(!app.classList.toggle("folded")));
  }
}

export function bindSidebar() {
  $("open-sidebar").setAttribute("aria-expanded", String(!isPhone()));
  $("open-sidebar").onclick = toggleSidebar;
  $("close-sidebar").onclick = () => { closeSidebar(); $("open-sidebar").focus(); };
  $("scrim").onclick = closeSidebar;
  $("new-chat").onclick = () => { open(newConversation()); closeSidebar(); $("prompt").focus(); };
  $("search").oninput = list;
  $("conversation-options").onclick = () => openConversationDialog(state.current);
  listen("list", list);
  listen("running", list);
}
