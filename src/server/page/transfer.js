// How do conversations leave this browser and come back? As JSON, whole; or as Markdown, the branch that is shown.
import {addMessage, merge, newConversation, newId, shownPath} from "./conversation.js";

const FORMAT = "gemma4-conversations";
const FILE_MAX = 512 << 20;  // bytes

export const fileName = (conversation, ending) =>
  (conversation.title.replace(/[^\p{L}\p{N}]+/gu, " ").trim().slice(0, 60) || "conversation") + "." + ending;

export function toJson(conversations) {
  return new Blob([JSON.stringify({format: FORMAT, version: 1, conversations}, null, 1)], {type: "application/json"});
}

// ---- Markdown. A line of a message that would read as one of ours gets a backslash.

const SPEAKERS = {user: "## You", assistant: "## Gemma"};
const OURS = /^\\*(## (You|Gemma)|<details><summary>Thought<\/summary>)$/;
const inLines = (text, change) => text.split("\n").map((line) => (OURS.test(line) ? change(line) : line)).join("\n");
const escaped = (text) => inLines(text, (line) => "\\" + line);
const unescaped = (text) => inLines(text, (line) => line.replace(/^\\/, ""));

function fenced(kind, text) {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map((found) => found[0].length));
  const fence = "`".repeat(longest + 1);
  return `${fence}${kind}\n${text}\n${fence}`;
}

function markdownOf(message) {
  const parts = [SPEAKERS[message.role]];
  (message.images ?? []).forEach(({src}, i) => parts.push(`![Picture ${i + 1}](${src})`));
  for (const {name, text} of message.documents ?? []) parts.push(fenced("file " + name.replace(/[\r\n`]/g, " "), text));
  if (message.thinking) parts.push(`<details><summary>Thought</summary>\n\n${escaped(message.thinking)}\n\n</details>`);
  if (message.text) parts.push(escaped(message.text));
  for (const call of message.calls ?? []) {
    const {name, arguments: given, result, server} = call;
    parts.push(fenced("tool-call", JSON.stringify({name, arguments: given, result, server}, null, 1)));
  }
  return parts.join("\n\n");
}

export function toMarkdown(conversation) {
  const text = [`# ${conversation.title}`, ...shownPath(conversation).map(markdownOf)].join("\n\n") + "\n";
  return new Blob([text], {type: "text/markdown"});
}

const PICTURE = /^!\[[^\]\n]*\]\((data:image\/(?:png|jpeg|webp);base64,[A-Za-z0-9+/=]+)\)\n*/;
const FILE = /^(`{3,})file ([^\n]+)\n([^]*?)\n\1(?:\n+|$)/;
const THOUGHT = /^<details><summary>Thought<\/summary>\n\n([^]*?)\n\n<\/details>\n*/;
const CALL = /\n*(`{3,})tool-call\n([^]*?)\n\1\s*$/;

function messageFrom(role, source) {
  const message = role === "user" ? {role, images: [], documents: []} : {role, thinking: "", calls: []};
  let rest = source.trim();
  const attached = () => (role === "user" ? PICTURE.exec(rest) ?? FILE.exec(rest) : null);
  for (let found; (found = attached()); rest = rest.slice(found[0].length)) {
    if (found[3] === undefined) message.images.push({src: found[1]});
    else message.documents.push({name: found[2], text: found[3]});
  }
  const thought = role === "assistant" ? THOUGHT.exec(rest) : null;
  if (thought) {
    message.thinking = unescaped(thought[1]);
    rest = rest.slice(thought[0].length);
  }
  for (let found; role === "assistant" && (found = CALL.exec(rest)); rest = rest.slice(0, found.index)) {
    try {
      const {name, arguments: given, result, server} = JSON.parse(found[2]);
      message.calls.unshift({id: "call_" + newId(), name: String(name), arguments: String(given),
                             result: String(result ?? ""), ...server ? {server: String(server), state: "done"} : {}});
      message.sent = true;
    } catch {
      break;  // it only looks like one of ours
    }
  }
  message.text = unescaped(rest.trim());
  return message;
}

function fromMarkdown(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const title = /^# (.*)$/.exec(lines[0])?.[1].trim() ?? "";
  const conversation = newConversation();
  conversation.title = title.slice(0, 200);
  const turns = [];
  let fence = null;  // a document may have lines like ours
  for (const line of lines) {
    const mark = /^(`{3,})(file [^\n]+|tool-call)$/.exec(line)?.[1];
    if (fence ? line === fence : mark) fence = fence ? null : mark;
    const role = fence ? undefined : Object.keys(SPEAKERS).find((each) => line === SPEAKERS[each]);
    if (role) turns.push({role, lines: []}); else turns.at(-1)?.lines.push(line);
  }
  if (!turns.length) throw new Error('it has no line "## You"');
  let parent = null;
  for (const {role, lines: body} of turns) parent = addMessage(conversation, parent, messageFrom(role, body.join("\n")));
  return [conversation];
}

// ---- JSON. A file may come from anywhere: what is not of the form that conversation.js describes is refused.

const isText = (value) => typeof value === "string";
const isList = (value, good) => value === undefined || (Array.isArray(value) && value.every(good));
const isPicture = (image) => isText(image?.src) && /^data:image\/(png|jpeg|webp);base64,/.test(image.src);
const isDocument = (each) => isText(each?.name) && isText(each?.text);
const isOptional = (value, type) => value === undefined || typeof value === type;
const isCall = (call) => [call?.id, call?.name, call?.arguments, call?.result].every(isText) &&
  ["server", "tool", "state"].every((key) => isOptional(call[key], "string"));

const isUsage = (usage) => Number.isFinite(usage?.prompt) && Number.isFinite(usage?.completion);

function isMessage(message) {
  return isText(message?.id) && (message.parent === null || isText(message.parent)) && isText(message.text) &&
    ["user", "assistant"].includes(message.role) && Number.isFinite(message.rev) && isList(message.images, isPicture) &&
    isList(message.documents, isDocument) && isList(message.calls, isCall) &&
    ["thinking", "stats", "finish", "error", "state"].every((key) => isOptional(message[key], "string")) &&
    isOptional(message.sent, "boolean") && (message.usage === undefined || isUsage(message.usage));
}

const isWaiting = (waiting) => isText(waiting?.id) && isText(waiting.text) && isList(waiting.images, isPicture) &&
  isList(waiting.documents, isDocument);

function isConversation(each) {
  return isText(each?.id) && isText(each.title) && (each.system === null || isText(each.system)) &&
    isList(each.servers, isText) && typeof each.pinned === "boolean" && Number.isFinite(each.changed) && Number.isFinite(each.touched) &&
    Array.isArray(each.messages) && each.messages.every(isMessage) &&
    typeof each.chosen === "object" && each.chosen !== null && Object.values(each.chosen).every(isText) &&
    Array.isArray(each.queue) && each.queue.every(isWaiting);
}

function fromJson(text) {
  const read = JSON.parse(text);
  if (read?.format !== FORMAT || !Array.isArray(read.conversations)) {
    throw new Error("it holds no conversations of this page");
  }
  const {conversations} = read;
  if (!conversations.every(isConversation)) throw new Error("a conversation in it is damaged");
  for (const conversation of conversations) {
    delete conversation.allowed;  // what may run unasked is said in this browser, not in a file
    const {messages} = conversation;
    for (const message of messages) if (message.state === "running") message.state = "cut";
  }
  return conversations;
}

// Adds the conversations of a file to `own`, and gives those that were added or changed. Throws Error with a reason.
export async function takeFile(file, own) {
  if (file.size > FILE_MAX) throw new Error(`it is larger than ${FILE_MAX >> 20} MiB`);
  const text = await file.text();
  let conversations;
  if (/^\s*\{/.test(text)) {
    try { conversations = fromJson(text); } catch (error) {
      throw error instanceof SyntaxError ? new Error("it is no JSON: " + error.message) : error;
    }
  } else {
    conversations = fromMarkdown(text);
  }
  return conversations.map((each) => {
    const known = own.find((other) => other.id === each.id);
    if (known) merge(known, each); else own.push(each);
    return known ?? each;
  });
}
