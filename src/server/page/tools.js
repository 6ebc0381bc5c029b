// How are the model's calls of MCP servers' tools answered? The user is asked, the tool runs, and the model goes on
// with what it returned.
import {pathTo} from "./conversation.js";
import {announce, notice} from "./notices.js";
import {callTool, known, open} from "./mcp.js";
import {parameters} from "./settings.js";
import {listen, state, tell} from "./state.js";
import {keep} from "./store.js";
import {answer, isBusy, occupied, running} from "./stream.js";

const ROUNDS_MAX = 8;  // of calls without a message of the user between them

const chosen = (conversation) => state.mcpServers.filter((url) => conversation.servers?.includes(url));

// The tools that the model hears of, by the name it hears: {url, tool}. Names are made as the API takes them, and unique.
function offered(conversation) {
  const all = new Map(), others = new Set((parameters().tools ?? []).map((each) => each?.function?.name));
  for (const url of chosen(conversation)) {
    for (const tool of known(url)?.tools ?? []) {
      const base = tool.name.replace(/[^A-Za-z0-9_-]/g, "_").slice(0, 60);
      let name = base;
      for (let i = 2; all.has(name) || others.has(name); ++i) name = `${base}_${i}`;
      all.set(name, {url, tool});
    }
  }
  return all;
}

// For a request. A server that cannot be reached is left out, and a notice says so.
export async function toolsOf(conversation, signal) {
  for (const url of chosen(conversation).filter((each) => !known(each))) {
    await open(url, signal).catch((error) => {
      if (signal.aborted) throw error;
      notice(error.message + " The model answers without its tools.", {failed: true, key: "mcp " + url});
    });
  }
  return [...offered(conversation)].map(([name, {tool}]) => ({
    type: "function", function: {name, description: String(tool.description ?? ""),
                                 parameters: tool.inputSchema ?? {type: "object"}}}));
}

const permission = (call) => `${call.server} ${call.tool}`;

// Whether the user is to say what happens with a call: also with one that was stopped, or cut by a reload.
export const isAsked = (conversation, message, call) => Boolean(call.server) && !message.sent && call.state !== "done" &&
  running(conversation)?.message !== message;

// Whether what is missing of a message's results is to be written by hand, if anything.
export const canReturn = (message) => Boolean(message.calls?.length) && !message.sent &&
  message.calls.every((call) => !call.server || call.state === "done");

async function changed(conversation, message) {
  ++message.rev;
  tell("message", conversation, message);
  await keep(conversation);
}

function rounds(conversation, message) {
  const path = pathTo(conversation, message);
  const own = path.slice(path.findLastIndex((each) => each.role === "user") + 1);
  return own.filter((each) => each.calls?.length).length;
}

function take(conversation, message) {
  if (message.state || message.error || message.sent || !message.calls?.length || conversation.removed) return;
  const tools = offered(conversation);
  const mine = message.calls.filter((call) => tools.has(call.name));
  if (!mine.length) return;
  if (rounds(conversation, message) > ROUNDS_MAX) {
    message.error = `The model called tools in ${ROUNDS_MAX} rounds in a row, so no more are run. ` +
      "Write a message to go on.";
  } else {
    for (const call of mine) {
      const {url, tool} = tools.get(call.name);
      Object.assign(call, {server: url, tool: tool.name, state: "asked"});
    }
  }
  changed(conversation, message).then(() => advance(conversation, message));
}

async function run(conversation, message, at) {
  let stopped = false;
  const set = (values) => {
    Object.assign(message.calls[at], values);  // another tab may have replaced the calls
    return changed(conversation, message);
  };
  await occupied(conversation, message, async (signal) => {
    await set({state: "running"});
    const {server, tool, arguments: given} = message.calls[at];
    try {
      if (!state.mcpServers.includes(server)) throw new Error("its server is not among those of --mcp");
      const result = await callTool(server, tool, JSON.parse(given || "{}"), signal);
      await set({state: "done", result});
    } catch (error) {
      stopped = signal.aborted;
      await set(stopped ? {state: "stopped"} : {state: "done", result: `The call failed: ${error.message}`});
    }
  });
  return !stopped;
}

// Runs what may run, one after another. Where nothing is missing then, the model goes on.
async function advance(conversation, message) {
  for (let at = 0; at < message.calls.length; ++at) {
    const call = message.calls[at];
    if (call.state !== "asked" || !conversation.allowed?.includes(permission(call))) continue;
    if (isBusy(conversation) || !await run(conversation, message, at)) return;
  }
  const asked = message.calls.find((call) => call.state === "asked");
  if (asked && state.current === conversation) announce(`The model wants to call ${asked.name}. Run it, or not?`);
  if (message.calls.every((call) => call.server && call.state === "done")) await sendResults(conversation, message);
}

// `choice`: "run", "refuse" or "always".
export async function decide(conversation, message, at, choice) {
  if (isBusy(conversation)) return;
  const call = message.calls[at];
  if (choice === "always") {
    conversation.allowed = [...conversation.allowed ?? [], permission(call)];
    conversation.touched = Date.now();
  }
  if (choice === "refuse") {
    Object.assign(call, {state: "done", result: "The user did not allow this call."});
    await changed(conversation, message);
  } else if (!await run(conversation, message, at)) {
    return;
  }
  await advance(conversation, message);
}

export async function sendResults(conversation, message) {
  if (isBusy(conversation) || conversation.removed) return;
  message.sent = true;
  ++message.rev;
  await answer(conversation, message);
}

// Before other parts hear that an answer has ended: what waits for it also waits for the calls.
export function bindTools() { listen("ended", take); }
