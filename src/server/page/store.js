// Where are conversations and drafts kept? In this browser's IndexedDB. Tabs tell each other what they kept over a
// BroadcastChannel.
import {isUnderWay, merge, upgraded} from "./conversation.js";
import {state, tell} from "./state.js";
import {notice} from "./notices.js";

// "answers" has answers that are being written, {id, conversation, message}: the conversation with its pictures is too
// large to be written every second. For the same reason a draft is in two: "drafts" has the text, "attached" the rest.
const KEPT = ["conversations", "answers"], DRAFTS = ["drafts", "attached"];

let database = null;

export async function openStore() {
  database = await new Promise((resolve) => {
    const request = indexedDB.open("gemma4", 3);
    request.onupgradeneeded = () => {
      const made = request.result.objectStoreNames;
      for (const name of [...KEPT, ...DRAFTS].filter((each) => !made.contains(each))) {
        request.result.createObjectStore(name, {keyPath: "id"});
      }
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

// Runs `action`, which gets the stores `names` and may return a request, in one transaction.
function transact(mode, names, action) {
  if (!database) return Promise.resolve(undefined);
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(names, mode);
    const request = action(...names.map((name) => transaction.objectStore(name)), transaction);
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
    records = await transact("readonly", KEPT, (conversations) => conversations.getAll()) ?? [];
    answers = await transact("readonly", KEPT, (_, all) => all.getAll()) ?? [];
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
  const record = await transact("readonly", KEPT, (conversations) => conversations.get(id));
  return record && upgraded(record);
}

// Keeps a conversation, together with what other tabs added to it meanwhile.
export async function keep(conversation) {
  if (conversation.removed) return;
  try {
    await transact("readwrite", KEPT, (conversations, answers) => {
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
    await transact("readwrite", KEPT, (_, answers) => answers.put({id: message.id, conversation: conversation.id, message}));
  } catch (error) {
    failed(error);
  }
}

// ---- Drafts, as drafts.js describes them. `known`: the keys that may be; what a deleted conversation left is dropped.
export async function loadDrafts(known) {
  const drafts = new Map();
  try {
    const texts = await transact("readonly", DRAFTS, (all) => all.getAllKeys()) ?? [];
    for (const key of texts) {
      if (known.includes(key)) drafts.set(key, await loadDraft(key));
      else await writeDraft(key, null, null);
    }
  } catch (error) {
    failed(error);
  }
  return drafts;
}

export async function loadDraft(key) {
  const text = await transact("readonly", DRAFTS, (texts) => texts.get(key));
  if (!text) return null;
  const attached = await transact("readonly", DRAFTS, (_, rest) => rest.get(key)) ?? {};
  const edited = text.edited && {images: [], documents: [], ...attached.edited, ...text.edited};
  return {images: [], documents: [], ...attached, ...text, edited};
}

// null removes a part, undefined leaves it as it is.
function writeDraft(key, ...parts) {
  return transact("readwrite", DRAFTS, (...all) => {
    const transaction = all.pop();
    all.forEach((store, i) => {
      if (parts[i] === null) store.delete(key);
      else if (parts[i]) store.put({...parts[i], id: key});
    });
    transaction.commit?.();  // so that it is done also where the page goes away at once
  });
}

export async function keepDraft(key, text, attached) {
  try {
    await writeDraft(key, text, attached);
    channel?.postMessage({type: "draft", key});
  } catch (error) {
    failed(error);
  }
}

export async function remove(gone) {
  try {
    await transact("readwrite", KEPT, (conversations, answers) => {
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
  for (const message of record.messages) if (!isUnderWay(message)) elsewhere.delete(message.id);
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
    if (data.type === "draft") tell("draft", data.key);
    if (data.type === "who") {
      for (const [conversation, message] of mine()) channel.postMessage({type: "answer", id: conversation.id, message});
    }
  };
  channel.postMessage({type: "who"});
}
