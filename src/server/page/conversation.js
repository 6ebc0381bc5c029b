// What is a conversation? A tree of messages, of which one branch is shown. Messages are never taken out of it: an
// edit or another answer is a new child of the same parent.
//
// Conversation: {version, id, title, pinned, system, messages, chosen, queue, changed, touched}
//   system   its own system prompt, or null for the one of the settings
//   chosen   {parent's id, or "root": id of the child that is shown}; the last child where there is none
//   queue    messages to send when the answer that is being written has ended: {id, text, images, documents}
//   servers  URLs of the MCP servers that it uses; allowed: ["URL tool"] that run unasked; both may be absent
//   changed  when a message was added; touched: when anything but a message was changed (milliseconds)
// Message: {id, parent, role, rev, text, images: [{src, refused}], documents: [{name, text}], thinking,
//   calls: [{id, name, arguments, result, server, tool, state}], sent, stats, usage, finish, error, state}
//   calls    of an MCP server's tool have the last three; their state: "asked", "running", "stopped" or "done"
//   rev      grows with each change; of two copies the one with the higher is right
//   sent     the results of its calls went back to the model
//   state    "running", "stopped" (by the user), "cut" (the page went away) or absent

const VERSION = 2;

export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation() {
  return {version: VERSION, id: newId(), title: "", pinned: false, system: null, messages: [], chosen: {}, queue: [],
          changed: Date.now(), touched: 0};
}

// Conversations that earlier versions kept were a list of messages.
export function upgraded(record) {
  if (record.version === VERSION) return record;
  let parent = null;
  const messages = (record.messages ?? []).map((old) => {
    const images = (old.images ?? []).map((src) => ({src}));
    const message = {...old, id: newId(), parent, rev: 1, images, documents: []};
    parent = message.id;
    return message;
  });
  return {...newConversation(), id: record.id, title: record.title, changed: record.changed, messages};
}

export function addMessage(conversation, parent, message) {
  const added = {id: newId(), parent: parent?.id ?? null, rev: 1, text: "", images: [], documents: [], ...message};
  conversation.messages.push(added);
  choose(conversation, added);
  conversation.changed = Date.now();
  if (!conversation.title && added.role === "user") {
    const first = added.text || added.documents[0]?.name || "Picture";
    conversation.title = first.replace(/\s+/g, " ").trim().slice(0, 60);
  }
  return added;
}

export function choose(conversation, message) {
  conversation.chosen[message.parent ?? "root"] = message.id;
  conversation.touched = Date.now();
}

export const siblings = ({messages}, message) => messages.filter((other) => other.parent === message.parent);

export const parentOf = ({messages}, message) => messages.find((other) => other.id === message.parent) ?? null;

// The branch that is shown, from the first message on.
export function shownPath(conversation) {
  const children = new Map();
  for (const message of conversation.messages) {
    children.set(message.parent, [...children.get(message.parent) ?? [], message]);
  }
  const path = [];
  for (let parent = null; children.has(parent); parent = path.at(-1).id) {
    const all = children.get(parent);
    path.push(all.find((message) => message.id === conversation.chosen[parent ?? "root"]) ?? all.at(-1));
    children.delete(parent);  // so that damaged parents cannot make it endless
  }
  return path;
}

// The branch that ends with `message`.
export function pathTo(conversation, message) {
  const byId = new Map(conversation.messages.map((each) => [each.id, each]));
  const path = [];
  for (let at = message; at && path.length <= conversation.messages.length; at = byId.get(at.parent)) path.unshift(at);
  return path;
}

// Takes into `own` what another copy of the same conversation has and it lacks.
export function merge(own, other) {
  const byId = new Map(own.messages.map((message) => [message.id, message]));
  for (const message of other.messages) {
    const mine = byId.get(message.id);
    if (!mine) own.messages.push(message);
    else if (message.rev > mine.rev) {
      for (const key of Object.keys(mine)) if (!(key in message)) delete mine[key];
      Object.assign(mine, message);
    }
  }
  own.changed = Math.max(own.changed, other.changed);
  if (other.touched > own.touched) {
    for (const key of ["title", "pinned", "system", "chosen", "queue", "servers", "allowed", "touched"]) {
      own[key] = other[key];
    }
  }
  if (!own.title) own.title = other.title;
}

// Something goes on for it: its text comes, or its calls run.
export const isUnderWay = (message) => message.state === "running" ||
  Boolean(message.calls?.some((call) => call.state === "running"));

// It ended before the model had said all: there is a text to go on from.
export const isCut = (message) => message.role === "assistant" && Boolean(message.text) && !message.calls?.length &&
  (message.state === "cut" || message.state === "stopped" || message.finish === "length" || Boolean(message.error));
