// Which request does a branch of a conversation become?
import {settings, parameters} from "./settings.js";
import {state} from "./state.js";

// A document is told as text before what the user wrote.
export function textOf(message) {
  const documents = (message.documents ?? []).map(({name, text}) => `The file ${name}:\n\n${text}\n\n(End of ${name}.)`);
  return [...documents, message.text].filter((part) => part).join("\n\n");
}

export const sentImages = (message) => (message.images ?? []).filter((image) => !image.refused);

function userEntry(message) {
  const text = textOf(message);
  const parts = sentImages(message).map(({src}) => ({type: "image_url", image_url: {url: src}}));
  if (text || !parts.length) parts.push({type: "text", text});
  return {role: "user", content: parts.length === 1 && parts[0].type === "text" ? text : parts};
}

function assistantEntries(message, last) {
  const calls = message.calls ?? [];
  const entry = {role: "assistant", content: message.text || null};
  const returned = calls.length > 0 && message.sent;
  if (message.thinking && (returned || last)) entry.reasoning_content = message.thinking;
  if (returned) {
    entry.tool_calls = calls.map((c) => ({id: c.id, type: "function", function: {name: c.name, arguments: c.arguments}}));
  }
  if (!entry.content && !entry.tool_calls) return [];  // it failed or was stopped before it began
  const results = returned ? calls.map((c) => ({role: "tool", tool_call_id: c.id, content: c.result || ""})) : [];
  return [entry, ...results];
}

// `path`: the messages before the answer; where the answer itself is the last of them, it goes on from there.
// `tools`: those of MCP servers, beside the settings'.
export function requestBody(conversation, path, tools = []) {
  const system = (conversation.system ?? settings.system).trim();
  const messages = system ? [{role: "system", content: system}] : [];
  path.forEach((message, i) => {
    if (message.role === "user") messages.push(userEntry(message));
    else messages.push(...assistantEntries(message, i === path.length - 1));
  });
  const body = {model: state.model?.id ?? "", messages, stream: true, stream_options: {include_usage: true},
                ...parameters()};
  if (tools.length) body.tools = [...body.tools ?? [], ...tools];
  return body;
}

// The picture that "image 3: ..." of an error is about, of those that the request sent.
export function imageOf(path, error) {
  const index = /^image (\d+):/.exec(error)?.[1];
  return index ? path.flatMap(sentImages)[index - 1] ?? null : null;
}
