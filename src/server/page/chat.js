// The page: starts the parts and connects them. Conversations stay in this browser; answers come from
// /v1/chat/completions of the same server.
import {bindComposer, cancelEdit} from "./composer.js";
import {bindConversationDialog} from "./conversation_dialog.js";
import {$, make} from "./dom.js";
import {readDrafts} from "./drafts.js";
import {libraries} from "./libraries.js";
import {bindLog} from "./log.js";
import {bindNotices, notice} from "./notices.js";
import {askForKey, bindSettings, keyIsRight, takeSettings} from "./settings_dialog.js";
import {followSettings, headers, loadSettings} from "./settings.js";
import {bindSidebar, closeSidebar, drop, openLast} from "./sidebar.js";
import {listen, state, tell} from "./state.js";
import {followTabs, keep, loadConversations, openStore} from "./store.js";
import {errorOf, keepRunning, markCut, NoKey, runningAnswers, stop} from "./stream.js";
import {bindTools} from "./tools.js";
import {bindViewer} from "./viewer.js";

const TOY = 1e8;          // parameters; below, it is the demonstration model or one like it
const OTHERS_MS = 500;    // other tabs say within this time what they are writing

const IDEAS = [
  {name: "Describe a picture", what: "Choose one, then send this", text: "What is in this picture?", picture: true},
  {name: "Read what it says", what: "Numbers and words in a picture", text: "What does the text in this picture say?",
   picture: true},
  {name: "Think it through", what: "With the thoughts shown, folded", text: "What is 23 + 18?"},
];

function showIdeas() {
  const possible = IDEAS.filter((idea) => !idea.picture || state.model?.vision !== false);
  const take = ({text, picture}) => {
    $("prompt").value = text;
    $("prompt").dispatchEvent(new Event("input"));
    $("prompt").focus();
    if (picture) $("files").click();
  };
  $("ideas").replaceChildren(...possible.map((idea) => make("button", {type: "button", onclick: () => take(idea)},
    make("b", {textContent: idea.name}), make("span", {textContent: idea.what}))));
}

function showModel() {
  const {id, parameters, vision} = state.model;
  $("model").textContent = id;
  $("attach").setAttribute("aria-label", vision ? "Add pictures or documents" : "Add documents");
  $("attach").title = $("attach").getAttribute("aria-label");
  $("toy").hidden = !(parameters < TOY);
  if (parameters < TOY) {
    $("toy").textContent = `This model is a toy of ${(parameters / 1e6).toFixed(1)} million parameters, made to show ` +
      "and test this program. The demonstration model knows coloured shapes and digits in pictures, counting, " +
      "spelling, small sums and tool calls, and little else.";
  }
}

async function loadModel() {
  try {
    const response = await fetch("v1/models", {headers: headers()});
    if (!response.ok) throw await errorOf(response);
    const {data, mcp_servers: mcpServers} = await response.json();
    state.model = data[0];
    state.mcpServers = mcpServers ?? [];
    showModel();
    keyIsRight();
  } catch (error) {
    if (error instanceof NoKey) {
      state.model = null;
      $("model").textContent = "";
      askForKey();
    } else {
      $("model").textContent = "not reachable";
      notice(error instanceof TypeError ? "The server cannot be reached." : error.message,
             {failed: true, key: "server", action: {label: "Try again", run: loadModel}});
    }
  }
  showIdeas();
  tell("model");
}

function bindKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) {
      if (!cancelEdit()) stop(state.current);
      closeSidebar();
    }
    if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      $("new-chat").click();
    }
  });
}

// Answers that no tab writes any more were cut by a reload.
function markAllCut() {
  const marked = state.conversations.filter(markCut);
  for (const conversation of marked) keep(conversation);
  if (!marked.length) return;  // what is selected and read stays as it is
  tell("list");
  tell("show");
}

async function start() {
  $("licences").hidden = !Object.values(libraries).some((present) => present);
  loadSettings();
  bindSettings(loadModel);
  bindConversationDialog();
  bindSidebar();
  bindTools();
  bindComposer();
  bindLog();
  bindViewer();
  bindNotices();
  bindKeys();
  listen("key", askForKey);
  listen("stale", loadModel);
  await openStore();
  state.conversations = await loadConversations();
  await readDrafts();
  followTabs(runningAnswers, drop);
  followSettings(takeSettings);
  openLast();
  addEventListener("pagehide", keepRunning);
  setTimeout(markAllCut, OTHERS_MS);
  await loadModel();
}

start();
