// Chats in the browser's storage, one entry a chat, so that several tabs do not write over each other.
// A chat: {id, title, changed (ms), messages: [{role, content, thoughts?, note?, problem?}]}.

const PREFIX = "octavo.chat.";
const SETTINGS = "octavo.settings";

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

function names() {
  return Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
}

export function newChat() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", changed: Date.now(), messages: [] };
}

/** All chats, the newest first. */
export function chats() {
  return names()
    .map(read)
    .filter((chat) => Array.isArray(chat?.messages))
    .sort((a, b) => b.changed - a.changed);
}

export function chat(id) {
  const found = read(PREFIX + id);
  return Array.isArray(found?.messages) ? found : null;
}

/** Keep a chat; where the storage is full the oldest ones make room. False if it did not fit all the same. */
export function save(kept) {
  kept.changed = Date.now();
  while (true) {
    try {
      localStorage.setItem(PREFIX + kept.id, JSON.stringify(kept));
      return true;
    } catch {
      const oldest = chats().filter((other) => other.id !== kept.id).at(-1);
      if (!oldest) return false;
      remove(oldest.id);
    }
  }
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

export function removeAll() {
  names().forEach((name) => localStorage.removeItem(name));
}

/** Calls back when another tab has changed a chat. */
export function watch(changed) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) changed();
  });
}

export const settings = {
  load: () => read(SETTINGS) ?? {},
  save: (values) => {
    try {
      localStorage.setItem(SETTINGS, JSON.stringify(values));
    } catch {
      // A full storage: they hold for as long as the page is open.
    }
  },
};
