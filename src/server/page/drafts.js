// What is written and attached, but not sent? One draft for each conversation, and one for a new one. It outlives a
// reload and a look at another conversation. Of two tabs that write one draft, the last that writes is right.
import {state} from "./state.js";
import {keepDraft, loadDraft, loadDrafts} from "./store.js";

// Draft: {text, images, documents, edited}
//   edited   {id, text, images, documents}: the message `id` is edited, and this is in the box; the draft is put aside
const drafts = new Map();  // by keyOf()

export const keyOf = (conversation) => (conversation.messages.length ? conversation.id : "new");

export const draftOf = (key) => drafts.get(key) ?? {text: "", images: [], documents: [], edited: null};

export async function readDrafts() {
  const keys = ["new", ...state.conversations.map(({id}) => id)];
  for (const [key, draft] of await loadDrafts(keys)) drafts.set(key, draft);
}

// Another tab wrote it. What is in the box here stays.
export async function takeDraft(key) {
  const draft = await loadDraft(key);
  if (key === keyOf(state.current)) return;
  if (draft) drafts.set(key, draft); else drafts.delete(key);
}

const isEmpty = ({text, images, documents, edited}) => !text && !images.length && !documents.length && !edited;

function textPart({text, edited}) { return {text, edited: edited && {id: edited.id, text: edited.text}}; }

function attachedPart({images, documents, edited}) {
  return {images, documents, edited: edited && {images: edited.images, documents: edited.documents}};
}

// `attached`: whether more than the text has changed. Pictures are too large to be written with each letter.
export function setDraft(key, draft, attached = true) {
  if (isEmpty(draft)) {
    const had = drafts.delete(key);
    if (had) keepDraft(key, null, null);
    return;
  }
  drafts.set(key, draft);
  keepDraft(key, textPart(draft), attached ? attachedPart(draft) : undefined);
}
