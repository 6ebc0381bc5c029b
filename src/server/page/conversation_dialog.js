// What can be said about one conversation? Its name, whether it is pinned, its own system prompt, the MCP servers that
// it uses, and a copy to keep.
import {$, download} from "./dom.js";
import {showServers} from "./mcp_dialog.js";
import {settings} from "./settings.js";
import {state, tell} from "./state.js";
import {keep} from "./store.js";
import {fileName, toJson, toMarkdown} from "./transfer.js";

let conversation = null;

export function openConversationDialog(which) {
  conversation = which;
  $("c-title").value = conversation.title;
  $("c-pinned").checked = conversation.pinned;
  $("c-own").checked = conversation.system !== null;
  showSystem();
  showServers(conversation, changed);
  for (const id of ["c-json", "c-markdown"]) $(id).disabled = conversation.messages.length === 0;
  $("conversation").showModal();
}

function showSystem() {
  $("c-system").disabled = !$("c-own").checked;
  $("c-system").value = conversation.system ?? settings.system;
}

function changed() {
  conversation.touched = Date.now();
  tell("list");
  if (conversation === state.current) tell("show");
  if (conversation.messages.length) keep(conversation);
}

export function bindConversationDialog() {
  $("c-title").onchange = () => {
    conversation.title = $("c-title").value.trim().slice(0, 200) || conversation.title;
    changed();
  };
  $("c-pinned").onchange = () => { conversation.pinned = $("c-pinned").checked; changed(); };
  $("c-own").onchange = () => {
    conversation.system = $("c-own").checked ? settings.system : null;
    showSystem();
    changed();
    if ($("c-own").checked) $("c-system").focus();
  };
  $("c-system").onchange = () => { conversation.system = $("c-system").value; changed(); };
  $("c-json").onclick = () => download(fileName(conversation, "json"), toJson([conversation]));
  $("c-markdown").onclick = () => download(fileName(conversation, "md"), toMarkdown(conversation));
}
