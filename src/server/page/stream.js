// How does an answer come? One request for each conversation that is being answered; each goes on whatever is shown.
import {count} from "./dom.js";
import {addMessage, isUnderWay, parentOf, pathTo, shownPath} from "./conversation.js";
import {readEvents} from "./events.js";
import {announce} from "./notices.js";
import {imageOf, requestBody} from "./request.js";
import {headers} from "./settings.js";
import {state, tell} from "./state.js";
import {isElsewhere, keep, keepAnswer} from "./store.js";
import {toolsOf} from "./tools.js";

const KEEP_EVERY = 1000;  // milliseconds; other tabs also take it for a sign of life

const runs = new Map();  // a conversation's id: {conversation, message, controller}

export const running = (conversation) => runs.get(conversation.id) ?? null;
export const runningAnswers = () => [...runs.values()].map(({conversation, message}) => [conversation, message]);

// Also in another tab.
export const isBusy = (conversation) => Boolean(running(conversation)) ||
  conversation.messages.some((message) => isUnderWay(message) && isElsewhere(message));

export function stop(conversation) { running(conversation)?.controller.abort(); }

export class NoKey extends Error {}

export async function errorOf(response) {
  let text = `The server answered ${response.status}.`;
  try { text = (await response.json()).error.message || text; } catch { /* no JSON */ }
  return response.status === 401 ? new NoKey(text) : new Error(text);
}

function applyDelta(message, delta) {
  if (delta.content) message.text += delta.content;
  if (delta.reasoning_content) message.thinking += delta.reasoning_content;
  for (const part of delta.tool_calls || []) {
    const call = message.calls[part.index] ??= {id: part.id, name: "", arguments: "", result: ""};
    if (part.function?.name) call.name = part.function.name;
    call.arguments += part.function?.arguments || "";
  }
}

function describe({usage, timings}, message) {
  const parts = [count(usage.completion_tokens, "token")];
  if (timings?.decode_tokens_per_second > 0) parts.push(`${timings.decode_tokens_per_second.toFixed(1)} tokens/s`);
  if (timings) parts.push(`first after ${(timings.first_token_ms / 1000).toFixed(2)} s`);
  const cached = usage.prompt_tokens_details?.cached_tokens;
  parts.push(`prompt ${usage.prompt_tokens}` + (cached ? ` (${cached} remembered)` : ""));
  if (message.finish === "length") parts.push("cut at its longest");
  return parts.join(" · ");
}

// Takes the stream's events into `message`.
function receiver(run) {
  const {conversation, message} = run;
  let pieces = 0, first = 0;
  return (chunk) => {
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices?.[0];
    if (choice?.finish_reason) message.finish = choice.finish_reason;
    if (choice) applyDelta(message, choice.delta);
    if (choice?.delta.content || choice?.delta.reasoning_content) {
      first ||= performance.now();
      const seconds = (performance.now() - first) / 1000;
      if (++pieces > 4 && seconds > 0.2) message.stats = `${(pieces / seconds).toFixed(1)} tokens/s`;
    }
    if (chunk.usage) {
      message.usage = {prompt: chunk.usage.prompt_tokens, completion: chunk.usage.completion_tokens};
      message.stats = describe(chunk, message);
    }
    ++message.rev;
    tell("message", conversation, message);
  };
}

function fail(path, message, error) {
  if (error.name === "AbortError") {
    message.state = "stopped";
    message.stats = "stopped";
    return;
  }
  message.error = error instanceof TypeError ? "The server cannot be reached." : error.message;
  const image = imageOf(path, message.error);
  if (image) {  // it must not make every later message fail, too
    image.refused = true;
    ++path.find((each) => each.images?.includes(image)).rev;
    message.error += ". The picture is left out from now on; answer again to go on without it.";
  }
  if (error instanceof NoKey) tell("key", message.error);
}

// Calls `action(signal)` for `message`. stop() ends it, and other tabs hear that it goes on.
export async function occupied(conversation, message, action) {
  const controller = new AbortController();
  runs.set(conversation.id, {conversation, message, controller});
  const beat = setInterval(() => keepAnswer(conversation, message), KEEP_EVERY);
  tell("list");
  tell("running");
  try {
    await action(controller.signal);
  } finally {
    clearInterval(beat);
    runs.delete(conversation.id);
    tell("message", conversation, message);
    tell("list");
    tell("running");
  }
}

// Asks for `message`. Its text, where it has any, is the beginning. `quiet`: who reads above is not taken to the end.
async function run(conversation, message, quiet = false) {
  const path = pathTo(conversation, message);
  if (!message.text) path.pop();
  const own = {conversation, message, controller: new AbortController()};
  runs.set(conversation.id, own);
  Object.assign(message, {state: "running", rev: message.rev + 1});
  for (const key of ["error", "finish", "stats"]) delete message[key];
  await keep(conversation);
  tell("list");
  if (state.current === conversation) tell("show", quiet ? {} : {anchor: message});
  tell("running");
  const beat = setInterval(() => keepAnswer(conversation, message), KEEP_EVERY);
  try {
    const body = JSON.stringify(requestBody(conversation, path, await toolsOf(conversation, own.controller.signal)));
    const response = await fetch("v1/chat/completions", {method: "POST", headers: headers(), body,
                                                         signal: own.controller.signal});
    if (response.status === 404) tell("stale");  // the server may have been started anew with another model
    if (!response.ok) throw await errorOf(response);
    const receive = receiver(own);
    await readEvents(response, (data) => { if (data !== "[DONE]") receive(JSON.parse(data)); });
    if (!message.finish) throw new Error("The connection ended before the answer did.");
  } catch (error) {
    fail(path, message, error);
  }
  clearInterval(beat);
  runs.delete(conversation.id);
  if (message.state === "running") delete message.state;
  ++message.rev;
  conversation.changed = Date.now();
  await keep(conversation);
  const heard = message.error || (message.text ? "Gemma: " + message.text : "The answer is there.");
  if (state.current === conversation) announce(heard);
  else if (!conversation.removed) conversation.unread = true;
  tell("list");
  tell("ended", conversation, message);
  tell("running");
}

// A new answer to `parent`, beside those that are there.
export async function answer(conversation, parent, quiet = false) {
  if (isBusy(conversation)) return;
  await run(conversation, addMessage(conversation, parent, {role: "assistant", thinking: "", calls: []}), quiet);
}

export async function answerAgain(conversation, message) {
  await answer(conversation, parentOf(conversation, message));
}

// Goes on where `message` was cut.
export async function goOn(conversation, message) {
  if (!isBusy(conversation)) await run(conversation, message);
}

// What came of the answers that are being written, before the page goes away.
export function keepRunning() {
  for (const [conversation, message] of runningAnswers()) keepAnswer(conversation, message);
}

// Marks answers that nobody writes any more.
export function markCut(conversation) {
  let marked = false;
  for (const message of conversation.messages) {
    if (message.state !== "running" || isElsewhere(message) || running(conversation)?.message === message) continue;
    Object.assign(message, {state: "cut", stats: "interrupted", rev: message.rev + 1});
    marked = true;
  }
  return marked;
}

export const lastShown = (conversation) => shownPath(conversation).at(-1) ?? null;
