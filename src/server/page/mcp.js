// How is an MCP server asked? Streamable HTTP, as the Model Context Protocol has it since 2025-06-18.
import {readEvents} from "./events.js";

const VERSION = "2025-06-18";
const PATIENCE = 15000;      // milliseconds until a server must have told what tools it has
const RESULT_MAX = 64 << 10; // bytes of a result that are kept
const ANSWER_MAX = 16 << 20; // bytes of an answer that are read
const PAGES_MAX = 50;        // of a list of tools

const sessions = new Map();  // a server's URL: {name, version, id, tools, ready}
let lastId = 0;

class Expired extends Error {}

async function post(url, message, signal) {
  const session = sessions.get(url);
  const headers = {"Content-Type": "application/json", Accept: "application/json, text/event-stream"};
  if (session) headers["MCP-Protocol-Version"] = session.version;
  if (session?.id) headers["Mcp-Session-Id"] = session.id;
  const response = await fetch(url, {method: "POST", headers, signal, credentials: "omit",
                                     body: JSON.stringify({jsonrpc: "2.0", ...message})});
  if (response.status === 404 && session?.id) throw new Expired("the session has ended");
  const hint = session && !session.id ? " (CORS may have to expose Mcp-Session-Id)" : "";
  if (!response.ok) throw new Error(`it answered with status ${response.status}${hint}`);
  return response;
}

// What the server asks meanwhile: it hears that it is heard, and that nothing else is possible here.
function answerServer(url, {id, method}) {
  const reply = method === "ping" ? {result: {}} : {error: {code: -32601, message: "the client has no " + method}};
  if (method && id !== undefined) post(url, {id, ...reply}).catch(() => {});
}

// The same response, which fails where it is longer than a page should hold.
function limited(response) {
  let left = ANSWER_MAX;
  const count = new TransformStream({transform(chunk, to) {
    left -= chunk.length;
    if (left < 0) throw new Error(`its answer is longer than ${ANSWER_MAX >> 20} MiB`);
    to.enqueue(chunk);
  }});
  return new Response(response.body?.pipeThrough(count), {headers: response.headers});
}

async function readReply(url, whole, id) {
  const response = limited(whole);
  let reply = null;
  const take = (data) => {
    const message = JSON.parse(data);
    if (message.method) answerServer(url, message); else if (message.id === id) reply = message;
    return Boolean(reply);
  };
  if (response.headers.get("Content-Type")?.startsWith("text/event-stream")) await readEvents(response, take);
  else take(await response.text());
  if (!reply) throw new Error("its answer is missing");
  if (reply.error) throw new Error(String(reply.error.message ?? "it gave an error without a reason"));
  return {result: reply.result ?? {}, session: response.headers.get("Mcp-Session-Id")};
}

async function request(url, method, params, signal) {
  const id = ++lastId;
  try {
    return await readReply(url, await post(url, {id, method, params}, signal), id);
  } catch (error) {
    if (signal?.aborted && method === "tools/call") {
      const params = {requestId: id, reason: "the user stopped it"};
      post(url, {method: "notifications/cancelled", params}).catch(() => {});
    }
    throw error;
  }
}

async function connect(url, signal) {
  sessions.delete(url);
  const params = {protocolVersion: VERSION, capabilities: {}, clientInfo: {name: "gemma4", version: "1"}};
  const {result, session: id} = await request(url, "initialize", params, signal);
  const {serverInfo, protocolVersion} = result;
  const name = String(serverInfo?.title || serverInfo?.name || new URL(url).host);
  const session = {name, version: String(protocolVersion ?? VERSION), id, tools: []};
  sessions.set(url, session);
  await post(url, {method: "notifications/initialized"}, signal);
  let cursor;
  for (let page = 0; page === 0 || (cursor && page < PAGES_MAX); ++page) {
    const {result: list} = await request(url, "tools/list", cursor ? {cursor} : {}, signal);
    session.tools.push(...(list.tools ?? []).filter((tool) => typeof tool?.name === "string"));
    cursor = list.nextCursor;
  }
  session.ready = true;
  return session;
}

// What is known of a server, without asking it: {name, tools}, or null.
export const known = (url) => (sessions.get(url)?.ready ? sessions.get(url) : null);

// Asks for the name and the tools of a server. Throws Error, whose message is a sentence for people.
export async function open(url, signal) {
  const within = AbortSignal.any([AbortSignal.timeout(PATIENCE), ...signal ? [signal] : []]);
  try {
    return await connect(url, within);
  } catch (error) {
    sessions.delete(url);
    if (signal?.aborted) throw error;
    const why = error instanceof TypeError ? "no answer could be read. It must run, and CORS must allow " +
      `${location.origin} (with the headers Mcp-Session-Id, also exposed, and MCP-Protocol-Version)`
      : error.name === "TimeoutError" ? `it did not answer within ${PATIENCE / 1000} seconds` : error.message;
    throw new Error(`The MCP server ${url} cannot be used: ${why}.`);
  }
}

function textOf(content) {
  if (content?.type === "text") return String(content.text);
  if (content?.type === "resource" && typeof content.resource?.text === "string") return content.resource.text;
  const what = content?.mimeType ?? content?.resource?.mimeType ?? content?.uri ?? content?.resource?.uri ?? "";
  return `(${[content?.type ?? "something", what].filter((part) => part).join(", ")}: not text, left out)`;
}

function bounded(text) {
  const bytes = new TextEncoder().encode(text);
  if (bytes.length <= RESULT_MAX) return text;
  const kept = new TextDecoder().decode(bytes.slice(0, RESULT_MAX)).replace(/\ufffd$/, "");
  return `${kept}\n(Cut here: the first ${RESULT_MAX >> 10} KiB of ${Math.ceil(bytes.length / 1024)} are kept.)`;
}

// The result of a call, as text. Where the session has ended, it begins a new one.
export async function callTool(url, name, given, signal) {
  if (!known(url)) await open(url, signal);
  const ask = () => request(url, "tools/call", {name, arguments: given}, signal);
  const {result} = await ask().catch(async (error) => {
    if (!(error instanceof Expired)) throw error;
    await open(url, signal);
    return ask();
  });
  const parts = (Array.isArray(result.content) ? result.content : []).map(textOf);
  if (!parts.length && result.structuredContent) parts.push(JSON.stringify(result.structuredContent));
  return bounded((result.isError ? "The tool failed: " : "") + (parts.join("\n") || "(nothing)"));
}
