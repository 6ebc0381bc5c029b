// What does the page know just now, and who wants to hear of changes?

export const state = {
  model: null,         // as /v1/models tells it
  mcpServers: [],      // URLs of the MCP servers that the operator lists
  conversations: [],   // as conversation.js describes them
  current: null,       // the one that is shown; it is in `conversations` from its first message on
};

const listeners = new Map();

// Names: "list" (the list of conversations), "show" (another conversation, or another branch), "message" (conversation,
// message), "ended" (conversation, message), "running", "model", "stale" (another model may be served), "key",
// "settings", "libraries", "draft" (the key of one that another tab wrote).
export function listen(name, action) {
  listeners.set(name, [...listeners.get(name) ?? [], action]);
}

export function tell(name, ...values) {
  for (const action of listeners.get(name) ?? []) action(...values);
}
