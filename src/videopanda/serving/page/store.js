// What the browser keeps: settings and conversations as text in localStorage, clips in IndexedDB.
// Each conversation has an entry of its own, so that two tabs do not overwrite one another's.

const SETTING = "videopanda.setting.";
const CONVERSATION = "videopanda.conversation.";
const OPENED = "videopanda.opened";
const MAX_CONVERSATIONS = 50;
const MAX_CLIP_BYTES = 512 * 2 ** 20;

export function setting(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(SETTING + name)) ?? fallback;
  } catch {
    return fallback; // the browser keeps nothing, or something else wrote it
  }
}

/** The conversation that was open last: in this tab, or else in any. */
export function opened() {
  try {
    return sessionStorage.getItem(OPENED) ?? localStorage.getItem(OPENED);
  } catch {
    return null;
  }
}

export function keepOpened(id) {
  try {
    for (const storage of [sessionStorage, localStorage]) storage.setItem(OPENED, id);
  } catch {
    // The browser keeps nothing.
  }
}

/** Keeps a setting; false if the browser keeps nothing. */
export function keepSetting(name, value) {
  return write(SETTING + name, value);
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** The kept conversations, newest first. */
export function keptConversations() {
  try {
    const keys = Object.keys(localStorage).filter((name) => name.startsWith(CONVERSATION));
    const found = keys.map((key) => read(localStorage.getItem(key))).filter(Boolean);
    return found.sort((one, other) => other.created - one.created);
  } catch {
    return []; // the browser keeps nothing
  }
}

/** A conversation; null for one that cannot be read. */
function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Calls `changed(kept)` and `dropped(id)` for conversations that another tab keeps or forgets. */
export function listenToTabs(changed, dropped) {
  addEventListener("storage", ({ key, newValue }) => {
    if (!key?.startsWith(CONVERSATION)) return;
    const kept = newValue === null ? null : read(newValue);
    if (kept) changed(kept);
    else dropped(key.slice(CONVERSATION.length));
  });
}

/** Keeps a conversation; the oldest ones make room. Returns false if the browser has none. */
export function keepConversation(conversation) {
  const older = keptConversations().filter(({ id }) => id !== conversation.id);
  while (older.length >= MAX_CONVERSATIONS) dropConversation(older.pop());
  while (!write(CONVERSATION + conversation.id, conversation)) {
    if (!older.length) return false;
    dropConversation(older.pop());
  }
  return true;
}

/** Forgets a conversation and its clip, at once. Returns a promise of the clip's file, or of null, for an undo. */
export async function dropConversation({ id, clip }) {
  try {
    localStorage.removeItem(CONVERSATION + id);
  } catch {
    // There was nothing to remove.
  }
  if (!clip) return null;
  const blob = await keptClip(clip.key);
  inClips("readwrite", (clips) => clips.delete(clip.key)).catch(() => {});
  return blob;
}

// -- clips -------------------------------------------------------------------------------------------------------------
const settled = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

let database = null;

async function inClips(mode, work) {
  if (!database) {
    const request = indexedDB.open("videopanda", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("clips", { keyPath: "key" });
    database = settled(request);
  }
  const clips = (await database).transaction("clips", mode).objectStore("clips");
  return settled(work(clips));
}

/** Keeps a clip; those that were used longest ago make room. Returns false if it is too large or the browser refuses. */
export async function keepClip(key, blob) {
  try {
    const kept = await inClips("readonly", (clips) => clips.getAll());
    let free = MAX_CLIP_BYTES - kept.reduce((sum, one) => sum + one.blob.size, 0);
    if (blob.size > MAX_CLIP_BYTES) return false;
    for (const old of kept.sort((one, other) => one.used - other.used)) {
      if (free >= blob.size) break;
      await inClips("readwrite", (clips) => clips.delete(old.key));
      free += old.blob.size;
    }
    await inClips("readwrite", (clips) => clips.put({ key, blob, used: Date.now() }));
    return true;
  } catch {
    return false;
  }
}

/** A kept clip, or null. */
export async function keptClip(key) {
  try {
    const found = await inClips("readonly", (clips) => clips.get(key));
    if (!found) return null;
    await inClips("readwrite", (clips) => clips.put({ ...found, used: Date.now() }));
    return found.blob;
  } catch {
    return null;
  }
}
