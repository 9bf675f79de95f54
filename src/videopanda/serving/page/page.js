// The page: conversations about clips, over the API of this server. Plain modules, nothing from elsewhere.
//
//   conversation.js  what a conversation owns, and its requests      log.js       its turns, shown
//   store.js         what the browser keeps                          timeline.js  which frames, and what they cost
//   history.js       the list of conversations                       moments.js   when something happens
//   api.js           requests to the server                          why.js       what an answer depends on
//   markdown.js, code.js                                             live.js      the camera

import * as api from "./api.js";
import { copyCode, exportAsJson } from "./code.js";
import { AGAIN_TEMPERATURE, Conversation, ask, check, ensureUploaded, explain, find } from "./conversation.js";
import { showHistory } from "./history.js";
import { listenLive, startLive } from "./live.js";
import { focusOnWhy, showLog, showTurn } from "./log.js";
import { showMoments } from "./moments.js";
import {
  dropConversation, keepClip, keepConversation, keepOpened, keepSetting, keptClip, keptConversations, listenToTabs, opened, setting,
} from "./store.js";
import { WITH_REGIONS, hideTimeline, showPace, showStills, showTicks, showTimeline, startTimeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const server = { model: null, needsKey: false, stamped: false, limits: { numFrames: 1, maxFrames: 1, context: Infinity, fileBytes: Infinity } };
let conversations = [];
let current = null;
let edited = null; // the turn whose question is being edited
let removed = null; // the conversation that was deleted last: { conversation, clip: a promise of its file }
let lookup = new AbortController(); // of the frames of the current clip

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

/** Keeps a conversation, unless it was removed while something for it was under way. */
function keep(conversation) {
  if (!conversations.includes(conversation) || !conversation.clip?.fileId) return;
  if (!keepConversation(conversation)) $("status").textContent = "This browser keeps no history.";
}

// -- conversations -----------------------------------------------------------------------------------------------------
function create() {
  const conversation = new Conversation();
  conversations.unshift(conversation);
  return conversation;
}

/** Shows a conversation. Requests of the one that was shown before run on, into their own turns. */
async function open(conversation) {
  current = conversation;
  keepOpened(conversation.id);
  stopEditing();
  lookup.abort();
  hideTimeline();
  for (const id of ["player", "picture"]) {
    URL.revokeObjectURL($(id).src);
    $(id).removeAttribute("src");
    $(id).hidden = true;
  }
  problem(conversation.problem);
  $("status").textContent = conversation.clip && !conversation.clip.fileId ? `Uploading ${conversation.clip.name} …` : "";
  showLog(conversation, acts);
  showIdeas();
  showControls();
  listConversations();
  if (conversation.clip?.fileId) await openClip(conversation);
}

async function openClip(conversation) {
  const { clip } = conversation;
  $("status").textContent = clip.isImage ? clip.name : `${clip.name}, ${clip.duration.toFixed(1)} s`;
  try {
    const blob = (await keptClip(clip.key)) ?? (await api.content(clip.fileId));
    if (conversation !== current) return;
    const shown = $(clip.isImage || blob.type === "image/gif" ? "picture" : "player");
    Object.assign(shown, { src: URL.createObjectURL(blob), hidden: false });
    $("picture").alt = clip.name;
    await showFramesOf(conversation);
  } catch (error) {
    if (conversation !== current) return;
    problem(error.status === 404 ? `${clip.name} is no longer stored here or on the server: choose it again.` : error.message);
  }
}

async function showFramesOf(conversation) {
  lookup.abort();
  lookup = new AbortController();
  const { signal } = lookup;
  try {
    await ensureUploaded(conversation.clip, signal);
    const seen = await api.frames(conversation.clip.fileId, conversation.choice, signal);
    if (signal.aborted) return;
    problem("");
    showTimeline(conversation, seen, { ...server.limits, ...paces() });
    showMoments(conversation, momentActs);
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

function listConversations() {
  showHistory(conversations, current, { open, remove: removeConversation });
}

/** Takes over what another tab keeps of a conversation. What is under way here is kept when it ends. */
function adopt(kept) {
  const known = conversations.find(({ id }) => id === kept.id);
  if (known?.running) return;
  if (known) Object.assign(known, { turns: kept.turns, moments: kept.moments });
  else insert(new Conversation(kept));
  if (known && known === current) {
    if (edited) stopEditing();
    showLog(known, acts);
    showMoments(known, momentActs);
    showControls();
  }
  listConversations();
}

function insert(conversation) {
  conversations = [...conversations, conversation].sort((one, other) => other.created - one.created);
}

/** Another tab has deleted a conversation: it is gone here too, unless it is shown. */
function forget(id) {
  conversations = conversations.filter((one) => one.id !== id || one === current);
  listConversations();
}

function removeConversation(conversation) {
  conversation.stop();
  conversations = conversations.filter((one) => one !== conversation);
  removed = { conversation, clip: dropConversation(conversation) };
  showRemoved();
  if (conversation === current) open(conversations[0] ?? create());
  else listConversations();
  $(conversation.isEmpty ? "new" : "undo").focus();
}

function showRemoved() {
  const isUndoable = Boolean(removed) && !removed.conversation.isEmpty;
  $("deleted").textContent = isUndoable ? `Deleted: ${removed.conversation.title}` : "";
  $("undo").hidden = !isUndoable;
}

async function undo() {
  const { conversation, clip } = removed;
  removed = null;
  showRemoved();
  const file = await clip;
  if (file) await keepClip(conversation.clip.key, file);
  insert(conversation);
  keep(conversation);
  const opening = open(conversation);
  $("conversations").querySelector("[aria-current]").focus();
  await opening;
}

// -- the video ---------------------------------------------------------------------------------------------------------
async function choose(file, ideas = []) {
  const conversation = current.isEmpty ? current : create();
  conversation.own(file.name);
  conversation.problem = "";
  const { clip } = conversation;
  open(conversation);
  try {
    const { fileBytes } = server.limits;
    if (file.size > fileBytes) throw new Error(`larger than ${inMebibytes(fileBytes)}, the limit of this server.`);
    const uploaded = await api.upload(file, file.name);
    const seen = await api.frames(uploaded.fileId, {}); // what cannot be read is told now
    const isKept = !conversations.includes(conversation) || (await keepClip(clip.key, file));
    Object.assign(clip, uploaded, { duration: seen.duration });
    Object.assign(conversation, { ideas });
    keep(conversation);
    if (conversation !== current) return;
    await open(conversation);
    if (!isKept) $("status").textContent += " (too large to be kept in this browser)";
    $("question").focus();
  } catch (error) {
    conversation.clip = null;
    conversation.problem = `${file.name}: ${error.message}`;
    if (conversation === current) return open(conversation);
    conversations = conversations.filter((one) => one !== conversation);
    listConversations();
    problem(conversation.problem);
  }
}

function showIdeas() {
  $("ideas").replaceChildren(...current.ideas.map((question) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "plain", textContent: question });
    button.addEventListener("click", () => submit(question));
    return button;
  }));
}

// -- questions ---------------------------------------------------------------------------------------------------------
/** Called for every change of a turn: what is shown changes only if its conversation is shown. */
function changedIn(conversation) {
  return (turn) => {
    const isSettled = !conversation.running;
    if (conversation === current) {
      showTurn(conversation, turn, acts);
      if (isSettled) {
        for (const other of conversation.turns) if (other !== turn) showTurn(conversation, other, acts);
        showTicks();
      }
      showControls();
    }
    if (!isSettled && turn.answer) return;
    if (isSettled && turn.state === "done" && !turn.checks && !turn.why) measure(turn);
    keep(conversation);
    listConversations();
  };
}

/** Seconds for each visual token of a clip that was new to the server: what the next one is likely to take. */
function measure({ about, usage, model }) {
  if (!about.visual_tokens || usage.prompt_tokens_details.cached_tokens) return;
  const { decode = 0, encode = 0, prefill = 0 } = about.seconds;
  const pace = (decode + encode + prefill) / about.visual_tokens;
  keepSetting("pace", { ...setting("pace", {}), [model]: pace });
  showPace(paces());
}

/** Seconds for each token of each request of an explanation, and how many of these are about regions of a frame. */
function measureWhy({ why, model }) {
  const { requests, visual_tokens: tokens, seconds, frames, regions } = why;
  const pace = { pace: seconds / (requests * tokens), regions: regions.length / Math.min(frames.length, WITH_REGIONS) };
  keepSetting("why", { ...setting("why", {}), [model]: pace });
  showPace(paces());
}

/** What was measured with this model. */
const paces = () => ({ pace: setting("pace", {})[server.model] ?? null, why: setting("why", {})[server.model] ?? null });

async function submit(question, sampling) {
  const conversation = current;
  if (conversation.running || !question.trim()) return;
  if (!conversation.clip?.fileId) {
    problem(conversation.clip ? "Wait until the video is uploaded." : "Choose a video first.");
    return;
  }
  if (conversation.turns.some(({ state }) => state === "running")) {
    problem("This conversation is being answered in another tab: wait for the answer.");
    return;
  }
  if (edited) cutFrom(edited);
  $("question").value = "";
  $("log").scrollTop = $("log").scrollHeight;
  const how = { model: server.model, sampling, stamped: server.stamped, withChecks: $("truth").checked };
  await ask(conversation, question, how, changedIn(conversation));
}

function cutFrom(turn) {
  current.turns.splice(current.turns.indexOf(turn));
  stopEditing();
  showLog(current, acts);
}

function stopEditing() {
  if (edited) $("question").value = "";
  edited = null;
  $("editing").hidden = true;
}

const acts = {
  edit(turn) {
    if (current.running) return;
    edited = turn;
    $("editing").hidden = false;
    $("question").value = turn.question;
    $("question").focus();
  },
  again(turn) {
    if (current.running) return;
    const isRepeated = turn.state === "done"; // a greedy answer would be the same
    cutFrom(turn);
    submit(turn.question, isRepeated ? { temperature: AGAIN_TEMPERATURE, seed: crypto.getRandomValues(new Uint32Array(1))[0] } : undefined);
  },
  check(turn) {
    if (!current.running) check(current, turn, changedIn(current));
  },
  async why(turn) {
    const conversation = current;
    if (conversation.running) return;
    const work = explain(conversation, turn, changedIn(conversation));
    $("stop").focus(); // the button that was pressed is gone
    await work;
    if (!turn.why) return;
    measureWhy(turn);
    if (conversation === current && [document.body, $("stop")].includes(document.activeElement)) focusOnWhy(turn);
  },
  async copy(turn) {
    try {
      await navigator.clipboard.writeText(turn.answer);
      $("status").textContent = "Copied the answer.";
    } catch {
      problem("The browser does not let this page copy: select the answer instead.");
    }
  },
};

// -- moments -----------------------------------------------------------------------------------------------------------
/** Called for every change of a moment. */
function momentChangedIn(conversation) {
  return () => {
    if (conversation === current) {
      showMoments(conversation, momentActs);
      showControls();
    }
    if (conversation.progress) return;
    keep(conversation);
    listConversations();
  };
}

async function findMoment(description) {
  const conversation = current;
  if (conversation.running || !description.trim()) return;
  $("happens").value = "";
  await find(conversation, description.trim(), server.model, momentChangedIn(conversation));
}

const momentActs = {
  remove(moment) {
    const conversation = current;
    conversation.moments = conversation.moments.filter((one) => one !== moment);
    momentChangedIn(conversation)();
    $("happens").focus();
  },
};

function showControls() {
  const isRunning = Boolean(current.running);
  $("send").disabled = $("find-send").disabled = isRunning;
  $("stop").disabled = !isRunning;
  $("log").toggleAttribute("data-busy", isRunning);
  $("log").dataset.hint = current.clip ? "Ask something about what is shown." : "Choose a video, then ask something about it.";
  $("export").hidden = !current.turns.length && !current.moments.length;
  for (const button of $("ideas").children) button.disabled = isRunning;
}

// -- code and facts ----------------------------------------------------------------------------------------------------
/** The question in the box, or else the last one that was asked, with the turns before it. */
function copy(language) {
  const { turns, clip, choice } = current;
  const typed = $("question").value.trim();
  if (!clip?.fileId || !(typed || turns.length)) {
    problem(clip?.fileId ? "Type a question first: it is copied with the video." : "Choose a video first.");
    return;
  }
  const before = turns.slice(0, typed ? (edited ? turns.indexOf(edited) : turns.length) : -1);
  const asked = typed ? { question: typed, choice, model: server.model } : turns.at(-1);
  copyCode(language, current, { ...asked, turns: before }, server.needsKey);
}

const inMebibytes = (bytes) => `${Math.floor(bytes / 2 ** 20).toLocaleString("en")} MiB`;

async function showFacts() {
  const { max_model_len: context, videopanda: limits } = await api.modelInfo();
  const facts = {
    "Model": server.model,
    "Context": `${context.toLocaleString("en")} tokens, for the video, the questions and the answers`,
    "Frames": `${limits.num_frames} unless chosen, at most ${limits.max_frames}`,
    "Answer": `at most ${limits.max_tokens.toLocaleString("en")} tokens`,
    "Upload": `at most ${inMebibytes(limits.max_file_bytes)}`,
  };
  const entry = (tag, textContent) => Object.assign(document.createElement(tag), { textContent });
  $("facts-list").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [entry("dt", name), entry("dd", value)]));
  $("facts").showModal();
}

// -- start -------------------------------------------------------------------------------------------------------------
function toggleTheme() {
  const { dataset } = document.documentElement;
  const isDark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = isDark ? "light" : "dark";
  keepSetting("theme", dataset.theme);
}

async function connect() {
  const told = await api.health();
  Object.assign(server, { model: told.model, needsKey: told.needs_key });
  $("model").textContent = told.model;
  $("key-form").hidden = !told.needs_key;
  if (told.needs_key && !api.access.key) return;
  const { max_model_len: context, videopanda: limits } = await api.modelInfo();
  server.stamped = limits.timestamps !== "none";
  server.limits = { numFrames: limits.num_frames, maxFrames: limits.max_frames, context, fileBytes: limits.max_file_bytes };
  open(current);
}

const report = (work) => (...given) => Promise.resolve(work(...given)).catch((error) => problem(error.message));

function listen() {
  $("file").addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    for (const file of files) choose(file);
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    $("drop").addEventListener(name, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") for (const file of event.dataTransfer.files) choose(file);
    });
  }
  $("player").addEventListener("error", () => {
    showStills();
    $("status").textContent += " (this browser cannot play it: you see single frames)";
  });
  $("example").addEventListener("click", report(async () => {
    const { file, questions } = await api.example();
    await choose(file, questions);
  }));
  $("live-start").addEventListener("click", report(() => startLive(server.model, server.limits.numFrames)));
  listenLive();
  $("new").addEventListener("click", () => {
    open(conversations.find((one) => one.isEmpty) ?? create());
    $("file").focus();
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    submit($("question").value);
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit($("question").value);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (current.running) current.stop();
    else stopEditing();
  });
  $("stop").addEventListener("click", () => current.stop());
  $("find").addEventListener("submit", (event) => {
    event.preventDefault();
    findMoment($("happens").value);
  });
  $("find-stop").addEventListener("click", () => {
    current.stop();
    $("happens").focus();
  });
  $("undo").addEventListener("click", report(undo));
  $("keep").addEventListener("click", stopEditing);
  $("truth").addEventListener("change", () => keepSetting("truth", $("truth").checked));
  $("export").addEventListener("click", () => exportAsJson(current, server.model));
  $("about").addEventListener("click", report(showFacts));
  $("theme").addEventListener("click", toggleTheme);
  $("key-form").addEventListener("submit", report(async (event) => {
    event.preventDefault();
    api.access.key = $("key").value.trim();
    keepSetting("key", api.access.key);
    current.problem = "";
    problem("");
    await connect();
  }));
  for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button.dataset.language));
  startTimeline(report(async (conversation) => {
    keep(conversation);
    if (conversation === current) await showFramesOf(conversation);
  }));
  const wide = matchMedia("(min-width: 70rem)");
  const unfold = () => { $("history").open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();
}

function start() {
  const theme = setting("theme", null);
  if (theme) document.documentElement.dataset.theme = theme;
  api.access.key = $("key").value = setting("key", "");
  $("truth").checked = setting("truth", false);
  conversations = keptConversations().map((kept) => new Conversation(kept).settle());
  current = conversations.find(({ id }) => id === opened()) ?? conversations[0] ?? create();
  listenToTabs(adopt, forget);
  addEventListener("pagehide", () => {
    for (const conversation of conversations) if (conversation.running) keep(conversation.settle());
  });
  listen();
  showLog(current, acts);
  showControls();
  listConversations();
  connect().catch((error) => problem(error.message));
}

start();
