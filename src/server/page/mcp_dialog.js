// Which MCP servers are there, what can they do, and which of them does a conversation use?
import {$, count, make} from "./dom.js";
import {known, open} from "./mcp.js";
import {state} from "./state.js";

function toolList({tools}) {
  const items = tools.map(({name, description}) => make("li", {}, make("b", {textContent: name}),
                                                        description ? " – " + description : null));
  return make("details", {}, make("summary", {textContent: count(tools.length, "tool")}), make("ul", {}, ...items));
}

function serverNode(conversation, url, at, changed) {
  const id = "c-server-" + at;
  const box = make("input", {type: "checkbox", id, checked: Boolean(conversation.servers?.includes(url)),
                             "aria-describedby": id + "-said"});
  box.onchange = () => {
    const others = (conversation.servers ?? []).filter((each) => each !== url);
    conversation.servers = box.checked ? [...others, url] : others;
    changed();
  };
  const name = make("span", {textContent: known(url)?.name ?? new URL(url).host});
  const said = make("div", {id: id + "-said", className: "explained"});
  const show = (session) => {
    name.textContent = session.name;
    said.replaceChildren(make("p", {className: "explained", textContent: url}), toolList(session));
  };
  said.append(make("p", {className: "explained", role: "status", textContent: "Asking what it can do…"}));
  (known(url) ? Promise.resolve(known(url)) : open(url)).then(show, ({message}) => {
    said.replaceChildren(make("p", {className: "field-error", role: "alert", textContent: message}));
  });
  return make("div", {className: "server"}, make("label", {className: "check", for: id}, box, name), said);
}

// `changed()` keeps the conversation.
export function showServers(conversation, changed) {
  $("c-mcp").hidden = !state.mcpServers.length;
  $("c-servers").replaceChildren(...state.mcpServers.map((url, at) => serverNode(conversation, url, at, changed)));
}
