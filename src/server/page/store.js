// Where are conversations kept? In this browser's IndexedDB. Tabs tell each other what they kept over a
// BroadcastChannel.
import {merge, upgraded} from "./conversation.js";
import {state, tell} from "./state.js";
import {notice} from "./notices.js";

// "answers" has answers that are being written, {id, conversation, message}: the conversation with its pictures is too
// large to be written every second.
const STORES = ["conversations", "answers"];

let database = null;

export async function openStore() {
  database = await new Promise((resolve) => {
    const request = indexedDB.open("gemma4", 2);
    request.onupgradeneeded = () => {
      const made = request.result.objectStoreNames;
      for (const name of STORES) if (!made.contains(name)) request.result.createObjectStore(name, {keyPath: "id"});
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);
    request.onblocked = () => notice("Another tab has an older version of this page open. Close or reload that tab.",
                                     {failed: true, key: "store"});
  });
  if (!database) {
    notice("This browser keeps nothing for this page (a private window?): conversations end with this tab.",
           {failed: true, key: "store"});
    return;
  }
  database.onversionchange = () => database.close();
}

// Runs `action(conversations, answers)`, which may return a request, in one transaction.
function transact(mode, action) {
  if (!database) return Promise.resolve(undefined);
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORES, mode);
    const request = action(...STORES.map((name) => transaction.objectStore(name)));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = () => reject(transaction.error ?? request?.error);
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser gave it up"));
  });
}

function failed(error) {
  const full = error?.name === "QuotaExceededError";
  const why = full ? "The browser's storage for this page is full. What is new is not kept: delete conversations, or " +
                     "export this one."
                   : `This conversation could not be kept: ${error?.message ?? "the browser does not say why"}.`;
  notice(why, {failed: true, key: "store"});
}

// All conversations, with what had come of answers that were cut.
export async function loadConversations() {
  let records = [], answers = [];
  try {
    records = await transact("readonly", (conversations) => conversations.getAll()) ?? [];
    answers = await transact("readonly", (_, all) => all.getAll()) ?? [];
  } catch (error) {
    notice(`Earlier conversations could not be read: ${error?.message ?? "the browser does not say why"}. Reload to ` +
           "try again.", {failed: true, key: "store"});
  }
  const found = records.map(upgraded);
  for (const {conversation, message} of answers) {
    const own = found.find((each) => each.id === conversation);
    if (own) merge(own, {...own, messages: [message]});
  }
  return found;
}

async function loadOne(id) {
  const record = await transact("readonly", (conversations) => conversations.get(id));
  return record && upgraded(record);
}

// Keeps a conversation, together with what other tabs added to it meanwhile.
export async function keep(conversation) {
  if (conversation.removed) return;
  try {
    await transact("readwrite", (conversations, answers) => {
      const request = conversations.get(conversation.id);
      request.onsuccess = () => {
        if (request.result) merge(conversation, upgraded(request.result));
        conversations.put(conversation);
        for (const message of conversation.messages) if (message.state !== "running") answers.delete(message.id);
      };
    });
    channel?.postMessage({type: "kept", id: conversation.id});
  } catch (error) {
    failed(error);
  }
}

// Keeps what has come of an answer so far, or what its calls returned.
export async function keepAnswer(conversation, message) {
  channel?.postMessage({type: "answer", id: conversation.id, message});
  try {
    await transact("readwrite", (_, answers) => answers.put({id: message.id, conversation: conversation.id, message}));
  } catch (error) {
    failed(error);
  }
}

export async function remove(gone) {
  try {
    await transact("readwrite", (conversations, answers) => {
      for (const {id, messages} of gone) {
        conversations.delete(id);
        for (const message of messages) answers.delete(message.id);
      }
    });
    channel?.postMessage({type: "removed", ids: gone.map(({id}) => id)});
  } catch (error) {
    failed(error);
  }
}

// ---- Other tabs.

const channel = "BroadcastChannel" in window ? new BroadcastChannel("gemma4") : null;
const elsewhere = new Map();  // id of a message that another tab writes: when it was last heard of
const SILENT = 75000;         // milliseconds; timers of hidden tabs may run once a minute

export const isElsewhere = (message) => Date.now() - (elsewhere.get(message.id) ?? 0) < SILENT;

async function takeKept(id) {
  const record = await loadOne(id);
  if (!record) return;
  const own = state.conversations.find((each) => each.id === id);
  if (own) merge(own, record); else state.conversations.push(record);
  for (const message of record.messages) if (message.state !== "running") elsewhere.delete(message.id);
  tell("list");
  if (state.current.id === id) tell("show");
}

function takeAnswer(id, message) {
  elsewhere.set(message.id, Date.now());
  const own = state.conversations.find((each) => each.id === id);
  if (!own) return;
  const known = own.messages.some((each) => each.id === message.id);
  merge(own, {...own, messages: [message]});
  if (known) tell("message", own, own.messages.find((each) => each.id === message.id));
  else if (state.current === own) tell("show");
  tell("running");
}

// `mine()` gives [conversation, message] of each answer that this tab writes, `removed(id)` drops a conversation.
export function followTabs(mine, removed) {
  if (!channel) return;
  channel.onmessage = ({data}) => {
    if (data.type === "kept") takeKept(data.id);
    if (data.type === "answer") takeAnswer(data.id, data.message);
    if (data.type === "removed") data.ids.forEach(removed);
    if (data.type === "who") {
      for (const [conversation, message] of mine()) channel.postMessage({type: "answer", id: conversation.id, message});
    }
  };
  channel.postMessage({type: "who"});
}
