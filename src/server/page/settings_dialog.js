// How are the settings shown and changed? Each control keeps its value as it is typed; what is wrong is said beside it.
import {$, count, download, make} from "./dom.js";
import {notice} from "./notices.js";
import {BUDGET, EFFORTS, loadSettings, NUMBERS, problemOf, resetSettings, saveSettings, settings} from "./settings.js";
import {removeConversations} from "./sidebar.js";
import {listen, state, tell} from "./state.js";
import {keep} from "./store.js";
import {takeFile, toJson} from "./transfer.js";

const THEMES = {auto: "as the system has them", light: "light", dark: "dark"};
const TEXTS = ["system", "stop", "tools", "schema", "image_budget", "effort", "key"];
const ALL = [...TEXTS, ...[...NUMBERS, BUDGET].map(({name}) => name)];

export function applyTheme() {
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
  $("theme").setAttribute("aria-label", "Colours: " + THEMES[settings.theme]);
  $("theme").title = "Colours: " + THEMES[settings.theme];
}

function applyThink() { $("think").setAttribute("aria-pressed", String(settings.think)); }

function ownValue({own, otherwise}) {
  if (!own) return otherwise;
  const value = state.model?.generation?.[own];
  return "checkpoint's own" + (value === undefined || value === null ? "" : ` (${value})`);
}

function numberField(number) {
  const id = "s-" + number.name;
  return make("div", {className: "field"}, make("label", {for: id, textContent: number.label}),
    make("input", {id, type: "text", inputMode: "decimal", autocomplete: "off", "aria-describedby": id + "-error"}),
    make("p", {id: id + "-error", className: "field-error", role: "alert"}));
}

function showProblem(name) {
  const problem = problemOf(name, settings[name]);
  const place = $(`s-${name}-error`);
  if (place && name !== "key") place.textContent = problem;
  $("s-" + name).setAttribute("aria-invalid", String(Boolean(problem)));
}

function fill() {
  for (const number of [...NUMBERS, BUDGET]) $("s-" + number.name).placeholder = ownValue(number);
  fillBudgets();
  for (const name of ALL) { $("s-" + name).value = settings[name]; showProblem(name); }
}

export function openSettings(focus) {
  fill();
  if (!$("settings").open) $("settings").showModal();
  if (focus) $(focus).focus();
}

// The server wants a key: say so where it is entered.
export function askForKey() {
  const wrong = Boolean(settings.key);
  $("key-note").hidden = false;
  $("key-note").textContent = wrong
    ? "The server does not take this key. Check it for missing characters, or ask whoever runs the server."
    : "This server asks for an API key before it answers. Whoever started it chose the key (--api-key-file, --api-key " +
      "or GEMMA4_API_KEY). It is kept in this browser alone.";
  $("s-key").setAttribute("aria-invalid", String(wrong));
  openSettings("s-key");
}

export function keyIsRight() {
  if ($("key-note").hidden) return;
  $("key-note").hidden = true;
  $("s-key").setAttribute("aria-invalid", "false");
  notice("The server takes this key.");
}

function fillBudgets() {
  const most = state.model?.image_budget_max || 1120;
  const names = {70: "coarse", 140: "", 280: "", 560: "", 1120: "fine print"};
  $("s-image_budget").replaceChildren(
    make("option", {value: "", textContent: `the model's own (${state.model?.image_budget || "?"} tokens)`}),
    ...Object.entries(names).filter(([n]) => n <= most).map(([n, what]) =>
      make("option", {value: n, textContent: `${n} tokens` + (what && ` – ${what}`)})));
}

async function importFiles(files) {
  for (const file of files) {
    try {
      const taken = await takeFile(file, state.conversations);
      for (const conversation of taken) await keep(conversation);
      notice(`${count(taken.length, "conversation")} from ${file.name}.`);
    } catch (error) {
      notice(`${file.name} was not imported: ${error.message}.`, {failed: true});
    }
  }
  tell("list");
  tell("show");
}

function bindTransfer() {
  $("export-all").onclick = () => {
    if (!state.conversations.length) { notice("There is no conversation to export."); return; }
    download("gemma4-conversations.json", toJson(state.conversations));
  };
  $("import").onclick = () => $("import-files").click();
  $("import-files").onchange = async (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    $("settings").close();
    await importFiles(files);
  };
  $("clear-all").onclick = () => {
    if (!state.conversations.length) { notice("There is no conversation to delete."); return; }
    $("settings").close();
    removeConversations([...state.conversations]);
  };
}

// `loadModel` asks the server again, with another key.
export function bindSettings(loadModel) {
  $("numbers").append(...NUMBERS.map(numberField));
  $("thinking").append(numberField(BUDGET));
  $("s-effort").append(make("option", {value: "", textContent: "no effort given"}),
                       ...EFFORTS.map((value) => make("option", {value, textContent: value})));
  for (const name of ALL) {
    $("s-" + name).addEventListener("input", (event) => {
      settings[name] = event.target.value;
      showProblem(name);
      saveSettings();
      tell("settings");
    });
  }
  $("s-key").addEventListener("change", loadModel);
  $("open-settings").onclick = () => openSettings();
  $("reset").onclick = () => {
    resetSettings();
    fill();
    applyThink();
    tell("settings");
    notice("The settings are as at first.");
  };
  $("think").onclick = () => { settings.think = !settings.think; applyThink(); saveSettings(); };
  $("theme").onclick = () => {
    const names = Object.keys(THEMES);
    settings.theme = names[(names.indexOf(settings.theme) + 1) % names.length];
    applyTheme();
    saveSettings();
  };
  bindTransfer();
  applyTheme();
  applyThink();
}

// Another tab changed them.
export function takeSettings() {
  loadSettings();
  applyTheme();
  applyThink();
  if ($("settings").open && !$("settings").contains(document.activeElement)) fill();
  tell("settings");
}
