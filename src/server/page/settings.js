// What did the user choose, and which parameters of a request come of it? What is left empty is not sent: then the
// checkpoint's own value holds.
import {notice} from "./notices.js";

// Number parameters of /v1/chat/completions. `own`: how /v1/models calls the checkpoint's value.
export const NUMBERS = [
  {name: "temperature", label: "Temperature", min: 0, max: 2, step: "any", own: "temperature"},
  {name: "top_p", label: "Top-p", min: 0, max: 1, step: "any", own: "top_p"},
  {name: "top_k", label: "Top-k", min: 0, max: 1000000, step: 1, own: "top_k"},
  {name: "min_p", label: "Min-p", min: 0, max: 1, step: "any", otherwise: "off"},
  {name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 100, step: "any", otherwise: "off"},
  {name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: "any", otherwise: "off"},
  {name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: "any", otherwise: "off"},
  {name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, otherwise: "another each time"},
  {name: "max_tokens", label: "Longest answer, in tokens", min: 1, max: 100000000, step: 1,
   otherwise: "as long as it takes"},
];
export const BUDGET = {name: "thinking_budget", label: "Longest thought, in tokens", min: 1, max: 100000000, step: 1,
                       otherwise: "no limit"};
export const EFFORTS = ["minimal", "low", "medium", "high", "xhigh", "max"];

const DEFAULTS = {version: 2, system: "", image_budget: "", tools: "", schema: "", stop: "", effort: "", key: "",
                  think: false, theme: "auto", ...Object.fromEntries([...NUMBERS, BUDGET].map(({name}) => [name, ""]))};
const STORED = "gemma4-settings";

export const settings = {...DEFAULTS};

export function loadSettings() {
  let stored = {};
  try { stored = JSON.parse(localStorage.getItem(STORED) || "{}"); } catch { /* damaged: the defaults */ }
  // The first version always sent these two, and called them defaults.
  if (!stored.version && Number(stored.temperature) === 1) delete stored.temperature;
  if (!stored.version && Number(stored.top_p) === 0.95) delete stored.top_p;
  for (const [name, value] of Object.entries(DEFAULTS)) {
    const found = typeof stored[name] === "number" && typeof value === "string" ? String(stored[name]) : stored[name];
    settings[name] = typeof found === typeof value ? found : value;
  }
  settings.version = DEFAULTS.version;
}

// Calls `action` when another tab has changed them.
export function followSettings(action) {
  addEventListener("storage", (event) => { if (event.key === STORED) action(); });
}

export function saveSettings() {
  try {
    localStorage.setItem(STORED, JSON.stringify(settings));
  } catch (error) {
    notice("The settings could not be kept: " + error.message, {failed: true, key: "settings"});
  }
}

export function resetSettings() {
  const {key, theme, system} = settings;
  Object.assign(settings, DEFAULTS, {key, theme, system});
  saveSettings();
}

// What is wrong with a value that was typed, or "".
export function problemOf(name, value) {
  if (!value.trim()) return "";
  const number = [...NUMBERS, BUDGET].find((each) => each.name === name);
  if (number) {
    const given = Number(value);
    const whole = number.step === 1;
    if (!Number.isFinite(given) || (whole && !Number.isInteger(given))) return `This is no ${whole ? "whole " : ""}number.`;
    return given < number.min || given > number.max ? `Between ${number.min} and ${number.max}.` : "";
  }
  if (name !== "tools" && name !== "schema") return "";
  try {
    const parsed = JSON.parse(value);
    if (name === "tools" && !Array.isArray(parsed)) return "This is no JSON array.";
    const isObject = typeof parsed === "object" && parsed !== null && !Array.isArray(parsed);
    if (name === "schema" && !isObject) return "This is no JSON object.";
  } catch (error) {
    return "This is no JSON: " + error.message;
  }
  return "";
}

// Of what is wrong nothing is sent.
const given = (name) => (settings[name].trim() && !problemOf(name, settings[name]) ? settings[name].trim() : "");

export function parameters() {
  const body = {chat_template_kwargs: {enable_thinking: settings.think}};
  for (const {name} of NUMBERS) if (given(name)) body[name] = Number(given(name));
  if (Number(settings.image_budget) > 0) body.image_budget = Number(settings.image_budget);
  if (settings.think && given("thinking_budget")) body.thinking_budget = Number(given("thinking_budget"));
  if (settings.think && EFFORTS.includes(settings.effort)) body.reasoning_effort = settings.effort;
  const stops = settings.stop.split("\n").filter((line) => line);
  if (stops.length) body.stop = stops;
  if (given("tools")) body.tools = JSON.parse(given("tools"));
  if (given("schema")) {
    body.response_format = {type: "json_schema", json_schema: {name: "answer", schema: JSON.parse(given("schema"))}};
  }
  return body;
}

export function headers() {
  const all = {"Content-Type": "application/json"};
  if (settings.key) all.Authorization = "Bearer " + settings.key;
  return all;
}
