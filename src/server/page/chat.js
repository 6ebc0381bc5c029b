"use strict";
// The page: conversations kept in this browser, one request at a time to /v1/chat/completions on the same server.

const $ = (id) => document.getElementById(id);

function make(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-")) node.setAttribute(key, value); else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function icon(name, className = "icon") {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", className);
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", "#i-" + name);
  svg.append(use);
  return svg;
}

function iconButton(name, label, onclick) {
  return make("button", {type: "button", className: "ghost", title: label, "aria-label": label, onclick}, icon(name));
}

// What this browser remembers: conversations in IndexedDB (pictures are large), settings in localStorage.
const store = {
  async open() {
    this.db = await new Promise((resolve) => {
      const request = indexedDB.open("gemma4", 1);
      request.onupgradeneeded = () => request.result.createObjectStore("conversations", {keyPath: "id"});
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);  // private windows may refuse: then nothing outlives this page
    });
  },
  run(mode, action) {
    if (!this.db) return Promise.resolve([]);
    return new Promise((resolve, reject) => {
      const request = action(this.db.transaction("conversations", mode).objectStore("conversations"));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  },
  all() { return this.run("readonly", (s) => s.getAll()); },
  save(conversation) { return this.run("readwrite", (s) => s.put(conversation)); },
  remove(id) { return this.run("readwrite", (s) => s.delete(id)); },
  clear() { return this.run("readwrite", (s) => s.clear()); },
};

const DEFAULTS = {system: "", temperature: 1, top_p: 0.95, max_tokens: "", image_budget: "", tools: "", key: "",
                  think: false, theme: "auto"};
const settings = {...DEFAULTS};
try { Object.assign(settings, JSON.parse(localStorage.getItem("gemma4-settings") || "{}")); } catch { /* damaged: defaults */ }
const saveSettings = () => { try { localStorage.setItem("gemma4-settings", JSON.stringify(settings)); } catch { /* full */ } };

let model = null;          // as /v1/models tells it
let conversations = [];    // newest first: {id, title, changed, messages}
let current = null;
let attached = [];         // data URLs
let running = null;        // {controller, message} while an answer comes

// A message: {role, text, images, thinking, calls: [{id, name, arguments, result}], stats, error, sent}. `sent`: the
// results of its calls went back to the model.

// ---- Conversations.

function newConversation() {
  current = {id: crypto.randomUUID ? crypto.randomUUID() : String(Date.now()) + Math.random(), title: "", changed: 0,
             messages: []};
  show();
}

async function keep() {
  current.changed = Date.now();
  if (!current.title) {
    const first = current.messages[0];
    current.title = (first.text || "Picture").replace(/\s+/g, " ").trim().slice(0, 60);
  }
  if (!conversations.includes(current)) conversations.push(current);
  conversations.sort((a, b) => b.changed - a.changed);
  listConversations();
  $("title").textContent = current.title;
  document.title = current.title + " – Gemma 4";
  try { await store.save(current); } catch (error) { say("This conversation could not be kept: " + error.message); }
}

async function removeConversation(conversation) {
  conversations = conversations.filter((c) => c !== conversation);
  await store.remove(conversation.id);
  if (conversation === current) { stopAnswer(); newConversation(); }
  listConversations();
}

function listConversations() {
  $("conversations").replaceChildren(...conversations.map((conversation) => make("li",
      {className: conversation === current ? "current" : ""},
      make("button", {className: "open", type: "button", title: conversation.title, textContent: conversation.title,
                      "aria-current": conversation === current ? "true" : "false",
                      onclick: () => { stopAnswer(); current = conversation; show(); closeSidebar(); }}),
      iconButton("trash", "Delete the conversation " + conversation.title, () => removeConversation(conversation)))));
}

// ---- Showing.

function say(text) { $("status").textContent = text; }

function show() {
  $("title").textContent = current.title || "New chat";
  document.title = (current.title ? current.title + " – " : "") + "Gemma 4";
  $("welcome").hidden = current.messages.length > 0;
  $("log").replaceChildren(...current.messages.map(messageNode));
  listConversations();
  toEnd(true);
  if (matchMedia("(min-width: 761px)").matches) $("prompt").focus();
}

function nearEnd() {
  const scroll = $("scroll");
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
}
function toEnd(force) { if (force || nearEnd()) $("scroll").scrollTop = $("scroll").scrollHeight; }

function copyButton(text, label = "Copy") {
  const button = iconButton("copy", label, async () => {
    await navigator.clipboard.writeText(text());
    button.replaceChildren(icon("check"));
    say("Copied");
    setTimeout(() => button.replaceChildren(icon("copy")), 1200);
  });
  return button;
}

function viewPicture(source) {
  $("viewer-image").src = source;
  $("viewer").showModal();
}

function userNode(message) {
  const index = () => current.messages.indexOf(message);
  return make("article", {className: "message user", "aria-label": "You"},
    message.images?.length ? make("div", {className: "pictures"}, ...message.images.map((source, i) =>
      make("button", {type: "button", "aria-label": `Show picture ${i + 1} large`, onclick: () => viewPicture(source)},
           make("img", {src: source, alt: `Picture ${i + 1} that you sent`})))) : null,
    message.text ? make("div", {className: "bubble", textContent: message.text}) : null,
    make("div", {className: "actions"},
      iconButton("edit", "Edit and ask again", () => editFrom(index())),
      message.text ? copyButton(() => message.text, "Copy your message") : null));
}

function toolNode(message, call) {
  let shown = call.arguments;
  try { shown = JSON.stringify(JSON.parse(call.arguments), null, 2); } catch { /* as it came */ }
  const node = make("div", {className: "tool"},
    make("div", {className: "tool-head"}, icon("tool"), call.name),
    make("pre", {textContent: shown, tabIndex: 0, "aria-label": "Arguments of " + call.name}));
  if (message.sent) {
    node.append(make("div", {className: "result", textContent: call.result || ""}));
  } else {
    node.append(make("label", {}, "What it returned",
      make("textarea", {rows: 2, className: "code", value: call.result || "", oninput: (e) => { call.result = e.target.value; }})));
  }
  return node;
}

function thoughtNode(message, busy) {
  const thinking = busy && !message.text && !message.calls?.length;
  const node = make("details", {className: "thought", open: Boolean(message.unfolded)},
    make("summary", {}, icon("thought"), thinking ? "Thinking…" : "Thought"),
    make("div", {textContent: message.thinking}));
  node.addEventListener("toggle", () => { message.unfolded = node.open; });
  return node;
}

function fillAssistant(body, message, busy) {
  body.replaceChildren();
  if (message.thinking) body.append(thoughtNode(message, busy));
  if (message.text) body.append(...markdown(message.text));
  for (const block of body.querySelectorAll("[data-copy]")) block.append(copyButton(() => block.dataset.copy, "Copy the code"));
  for (const call of message.calls || []) body.append(toolNode(message, call));
  if (busy && !message.text && !message.thinking) {
    body.append(make("span", {className: "typing", "aria-label": "The answer is on its way"}, make("i"), make("i"), make("i")));
  }
  if (message.error) body.append(make("div", {className: "failed", role: "alert", textContent: message.error}));
}

function assistantNode(message) {
  const busy = running?.message === message;
  const body = make("div", {className: "body"});
  const actions = make("div", {className: "actions"});
  const node = make("article", {className: "message assistant" + (busy ? " busy" : ""), "aria-label": "Gemma"},
    icon("gem", "icon gem"), make("div", {}, body, actions));
  fillAssistant(body, message, busy);
  if (!busy) {
    if (message.text) actions.append(copyButton(() => message.text, "Copy the answer"));
    actions.append(iconButton("redo", "Answer again", () => regenerate(message)));
    if (message.calls?.length && !message.sent) {
      actions.prepend(make("button", {type: "button", className: "primary send-results", textContent: "Return to the model",
                                      onclick: () => sendResults(message)}));
    }
  }
  if (message.stats) actions.append(make("span", {className: "stats", textContent: message.stats}));
  node.update = () => { fillAssistant(body, message, true); showStats(actions, message); };
  return node;
}

function showStats(actions, message) {
  if (message.stats) actions.replaceChildren(make("span", {className: "stats", textContent: message.stats}));
}

function messageNode(message) { return message.role === "user" ? userNode(message) : assistantNode(message); }

// ---- Asking.

function chatMessages(messages) {
  const out = settings.system.trim() ? [{role: "system", content: settings.system}] : [];
  for (const message of messages) {
    if (message.role === "user") {
      const parts = (message.images || []).map((url) => ({type: "image_url", image_url: {url}}));
      if (message.text) parts.push({type: "text", text: message.text});
      out.push({role: "user", content: parts.length === 1 && parts[0].type === "text" ? message.text : parts});
      continue;
    }
    if (!message.text && !message.calls?.length) continue;  // failed or stopped before it began
    const calls = message.calls || [];
    const entry = {role: "assistant", content: message.text || null};
    if (calls.length && message.sent) {
      if (message.thinking) entry.reasoning_content = message.thinking;
      entry.tool_calls = calls.map((c) => ({id: c.id, type: "function", function: {name: c.name, arguments: c.arguments}}));
    }
    if (entry.content || entry.tool_calls) out.push(entry);
    if (entry.tool_calls) for (const c of calls) out.push({role: "tool", tool_call_id: c.id, content: c.result || ""});
  }
  return out;
}

function requestBody(messages) {
  const body = {model: model?.id ?? "", messages: chatMessages(messages), stream: true, stream_options: {include_usage: true},
                temperature: Number(settings.temperature), top_p: Number(settings.top_p),
                chat_template_kwargs: {enable_thinking: settings.think}};
  if (Number(settings.max_tokens) > 0) body.max_tokens = Number(settings.max_tokens);
  if (Number(settings.image_budget) > 0) body.image_budget = Number(settings.image_budget);
  if (settings.tools.trim()) body.tools = JSON.parse(settings.tools);
  return body;
}

function headers() {
  const all = {"Content-Type": "application/json"};
  if (settings.key) all.Authorization = "Bearer " + settings.key;
  return all;
}

async function errorOf(response) {
  let text = `The server answered ${response.status}.`;
  try { text = (await response.json()).error.message || text; } catch { /* no JSON */ }
  if (response.status === 401) { text += " Enter the key in the settings."; openSettings("s-key"); }
  return text;
}

// Calls `each` with every event's data, as JSON.
async function readEvents(response, each) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const {value, done} = await reader.read();
    if (done) return;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((l) => l.startsWith("data: ")).map((l) => l.slice(6)).join("\n");
      if (data && data !== "[DONE]") each(JSON.parse(data));
    }
  }
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

function describe(chunk, message) {
  const {usage, timings} = chunk;
  const parts = [`${usage.completion_tokens} tokens`];
  if (timings?.decode_tokens_per_second > 0) parts.push(`${timings.decode_tokens_per_second.toFixed(1)} tokens/s`);
  if (timings) parts.push(`first after ${(timings.first_token_ms / 1000).toFixed(2)} s`);
  const cached = usage.prompt_tokens_details?.cached_tokens;
  parts.push(`prompt ${usage.prompt_tokens}` + (cached ? ` (${cached} remembered)` : ""));
  if (message.finish === "length") parts.push("cut at its longest");
  return parts.join(" · ");
}

async function answer() {
  if (running) return;
  const conversation = current;
  const before = conversation.messages.slice();
  const message = {role: "assistant", text: "", thinking: "", calls: []};
  conversation.messages.push(message);
  running = {controller: new AbortController(), message};
  busy(true);
  $("welcome").hidden = true;
  const node = assistantNode(message);
  $("log").append(node);
  toEnd(true);
  let drawn = false, pieces = 0, first = 0;
  const draw = () => {
    if (drawn) return;
    drawn = true;
    requestAnimationFrame(() => {
      drawn = false;
      const follow = nearEnd();
      node.update();
      if (follow) toEnd(true);
    });
  };
  try {
    const response = await fetch("v1/chat/completions", {method: "POST", headers: headers(), signal: running.controller.signal,
                                                         body: JSON.stringify(requestBody(before))});
    if (!response.ok) throw new Error(await errorOf(response));
    await readEvents(response, (chunk) => {
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices?.[0];
      if (choice?.finish_reason) message.finish = choice.finish_reason;
      if (choice) applyDelta(message, choice.delta);
      if (choice?.delta.content || choice?.delta.reasoning_content) {
        first ||= performance.now();
        const seconds = (performance.now() - first) / 1000;
        if (++pieces > 4 && seconds > 0.2) message.stats = `${(pieces / seconds).toFixed(1)} tokens/s`;
      }
      if (chunk.usage) message.stats = describe(chunk, message);
      draw();
    });
  } catch (error) {
    if (error.name === "AbortError") message.stats = "stopped";
    else message.error = error instanceof TypeError ? "The server cannot be reached." : error.message;
  }
  running = null;
  busy(false);
  const final = assistantNode(message);
  const follow = nearEnd();
  if (node.isConnected) node.replaceWith(final);
  if (follow) toEnd(true);
  say(message.error || (message.text ? "Gemma: " + message.text : "The answer is there."));
  const shown = current;
  current = conversation;
  await keep();
  current = shown;
  if (shown !== conversation) show();
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  ready();
}

function stopAnswer() { running?.controller.abort(); }

function ready() { $("send").disabled = Boolean(running) || (!$("prompt").value.trim() && !attached.length); }

async function submit() {
  const text = $("prompt").value.trim();
  if (running || (!text && !attached.length)) return;
  const message = {role: "user", text, images: attached};
  current.messages.push(message);
  attached = [];
  $("prompt").value = "";
  showAttached();
  grow();
  $("welcome").hidden = true;
  $("log").append(userNode(message));
  keep();
  await answer();
}

async function regenerate(message) {
  if (running) return;
  current.messages.length = current.messages.indexOf(message);
  show();
  await answer();
}

async function sendResults(message) {
  if (running) return;
  message.sent = true;
  show();
  await answer();
}

function editFrom(index) {
  if (running) return;
  const message = current.messages[index];
  current.messages.length = index;
  attached = message.images || [];
  $("prompt").value = message.text;
  show();
  showAttached();
  grow();
  $("prompt").focus();
}

// ---- Pictures.

const AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];
const LARGEST = 6 << 20;  // bytes

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// Pictures in the server's formats go as they are; others, and very large ones, are painted anew.
async function readPicture(file) {
  if (AS_THEY_ARE.includes(file.type) && file.size <= LARGEST) return dataUrl(file);
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, 2400 / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", {width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale))});
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL(file.size > LARGEST ? "image/jpeg" : "image/png", 0.92);
}

async function attach(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) { say(`${file.name} is no picture.`); continue; }
    try { attached.push(await readPicture(file)); } catch { say(`${file.name} is no picture that this browser can read.`); }
  }
  showAttached();
  $("prompt").focus();
}

function showAttached() {
  $("attached").replaceChildren(...attached.map((source, i) => make("figure", {},
    make("img", {src: source, alt: `Picture ${i + 1} to send`}),
    make("button", {type: "button", "aria-label": `Remove picture ${i + 1}`,
                    onclick: () => { attached = attached.filter((_, j) => j !== i); showAttached(); }}, icon("close")))));
  ready();
}

// ---- Settings.

const THEMES = {auto: "as the system has them", light: "light", dark: "dark"};

function applyTheme() {
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
  $("theme").setAttribute("aria-label", "Colours: " + THEMES[settings.theme]);
  $("theme").title = "Colours: " + THEMES[settings.theme];
}

function applyThink() { $("think").setAttribute("aria-pressed", String(settings.think)); }

function checkTools() {
  let problem = "";
  try {
    if (settings.tools.trim() && !Array.isArray(JSON.parse(settings.tools))) problem = "This is not a JSON array.";
  } catch (error) { problem = "This is not JSON: " + error.message; }
  $("tools-error").textContent = problem;
}

function openSettings(focus) {
  for (const name of ["system", "temperature", "top_p", "max_tokens", "image_budget", "tools", "key"]) $("s-" + name).value = settings[name];
  for (const name of ["temperature", "top_p"]) $("o-" + name).textContent = settings[name];
  checkTools();
  if (!$("settings").open) $("settings").showModal();
  if (focus) $(focus).focus();
}

function bindSettings() {
  for (const name of ["system", "temperature", "top_p", "max_tokens", "image_budget", "tools", "key"]) {
    $("s-" + name).addEventListener("input", (event) => {
      settings[name] = event.target.value;
      if ($("o-" + name)) $("o-" + name).textContent = event.target.value;
      if (name === "tools") checkTools();
      saveSettings();
    });
  }
  $("s-key").addEventListener("change", loadModel);
  $("open-settings").onclick = () => openSettings();
  $("think").onclick = () => { settings.think = !settings.think; applyThink(); saveSettings(); };
  $("theme").onclick = () => {
    const names = Object.keys(THEMES);
    settings.theme = names[(names.indexOf(settings.theme) + 1) % names.length];
    applyTheme();
    saveSettings();
  };
  let armed = false;
  $("clear-all").onclick = async (event) => {
    if (!armed) {
      armed = true;
      event.target.textContent = "Really delete all?";
      setTimeout(() => { armed = false; event.target.textContent = "Delete all conversations"; }, 4000);
      return;
    }
    await store.clear();
    conversations = [];
    stopAnswer();
    newConversation();
  };
}

function fillBudgets() {
  const most = model?.image_budget_max || 1120;
  const names = {70: "coarse", 140: "", 280: "", 560: "", 1120: "fine print"};
  $("s-image_budget").replaceChildren(make("option", {value: "", textContent: `the model's own (${model?.image_budget || "?"} tokens)`}),
    ...Object.entries(names).filter(([n]) => n <= most).map(([n, what]) =>
      make("option", {value: n, textContent: `${n} tokens` + (what && ` – ${what}`)})));
  $("s-image_budget").value = settings.image_budget;
}

async function loadModel() {
  try {
    const response = await fetch("v1/models", {headers: headers()});
    if (!response.ok) { say(await errorOf(response)); return; }
    model = (await response.json()).data[0];
    $("model").textContent = model.id;
    $("attach").hidden = !model.vision;
  } catch {
    $("model").textContent = "not reachable";
  }
  fillBudgets();
}

// ---- The frame.

function closeSidebar() {
  document.querySelector(".app").classList.remove("shown");
  $("scrim").hidden = true;
  $("open-sidebar").setAttribute("aria-expanded", "false");
}

function toggleSidebar() {
  const app = document.querySelector(".app");
  if (matchMedia("(max-width: 760px)").matches) {
    const shown = app.classList.toggle("shown");
    $("scrim").hidden = !shown;
    $("open-sidebar").setAttribute("aria-expanded", String(shown));
    if (shown) $("new-chat").focus();
  } else {
    $("open-sidebar").setAttribute("aria-expanded", String(!app.classList.toggle("folded")));
  }
}

function grow() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = prompt.scrollHeight + "px";
  ready();
}

function bindFrame() {
  $("open-sidebar").onclick = toggleSidebar;
  $("close-sidebar").onclick = () => { closeSidebar(); $("open-sidebar").focus(); };
  $("scrim").onclick = closeSidebar;
  $("new-chat").onclick = () => { stopAnswer(); newConversation(); closeSidebar(); };
  $("composer").onsubmit = (event) => { event.preventDefault(); submit(); };
  $("stop").onclick = stopAnswer;
  $("prompt").oninput = grow;
  $("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) { stopAnswer(); closeSidebar(); }
    if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      $("new-chat").click();
    }
  });
  $("attach").onclick = () => $("files").click();
  $("files").onchange = (event) => { attach([...event.target.files]); event.target.value = ""; };
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (files.length) { event.preventDefault(); attach(files); }
  });
  let depth = 0;
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragenter", (event) => { if (carriesFiles(event)) { ++depth; $("drop").hidden = false; } });
  document.addEventListener("dragleave", (event) => { if (carriesFiles(event) && --depth <= 0) { depth = 0; $("drop").hidden = true; } });
  document.addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    depth = 0;
    $("drop").hidden = true;
    if (event.dataTransfer.files.length) { event.preventDefault(); attach([...event.dataTransfer.files]); }
  });
}

const IDEAS = [
  ["Describe a picture", "Drop one here, then send this", "What is in this picture?"],
  ["Read what it says", "Numbers and words in a picture", "What does the text in this picture say?"],
  ["Think it through", "With the thoughts shown, folded", "What is 23 + 18?"],
];

(async () => {
  applyTheme();
  applyThink();
  bindSettings();
  bindFrame();
  $("ideas").append(...IDEAS.map(([name, what, text]) => make("button", {type: "button", onclick: () => {
    $("prompt").value = text;
    grow();
    $("prompt").focus();
  }}, make("b", {textContent: name}), make("span", {textContent: what}))));
  await store.open();
  conversations = (await store.all()).sort((a, b) => b.changed - a.changed);
  newConversation();
  await loadModel();
})();
