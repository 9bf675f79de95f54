// A conversation owns its clip, its turns and its running request. The clip of a conversation never changes: another
// clip is another conversation. What a request brings goes to the turn that it was made for, whatever is shown by then.

import * as api from "./api.js";
import { keptClip } from "./store.js";

export const BASELINES = { no_video: "without the video", shuffled: "frames shuffled", one_frame: "one frame" };
export const AGAIN_TEMPERATURE = 0.8;

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export class Conversation {
  /** A new conversation, or a kept one. */
  constructor(kept = {}) {
    Object.assign(this, { id: newId(), created: Date.now(), clip: null, choice: {}, turns: [], moments: [], ideas: [] }, kept);
    this.running = null;
    this.explained = null; // the turn that is being explained
    this.progress = null; // { done, total } of what is running
    this.problem = "";
  }

  toJSON() {
    const { id, created, clip, choice, turns, moments, ideas } = this;
    return { id, created, clip, choice, turns, moments: moments.filter(({ state }) => state === "done"), ideas };
  }

  get isEmpty() { return !this.clip && !this.turns.length; }

  get title() { return this.turns[0]?.question ?? this.clip?.name ?? "New conversation"; }

  own(name) { this.clip = { key: newId(), name, fileId: null }; }

  stop() { this.running?.abort(); }

  /** Ends what is under way, because the page is closed, or was. */
  settle() {
    this.stop();
    for (const turn of this.turns) if (turn.state === "running") turn.state = "stopped";
    return this;
  }
}

/** The clip's file on the server, uploaded again if it has expired there. Throws if no copy is left. */
export async function ensureUploaded(clip, signal) {
  if (await api.isStored(clip.fileId, signal)) return;
  const blob = await keptClip(clip.key);
  if (!blob) throw new Error(`${clip.name} is no longer stored here or on the server: choose it again.`);
  Object.assign(clip, await api.upload(blob, clip.name));
}

/** The request for a question. `baseline` shows the clip as that baseline does; see BASELINES. */
export function requestFor(conversation, { turns, question, choice, sampling, model, baseline }) {
  const answered = turns.filter((turn) => turn.answer && turn.state !== "failed");
  const said = answered.flatMap(({ question: asked, answer }) => [
    { role: "user", content: [{ type: "text", text: asked }] }, { role: "assistant", content: answer },
  ]);
  const messages = [...said, { role: "user", content: [{ type: "text", text: question }] }];
  if (baseline !== "no_video") {
    const { fileId, isImage } = conversation.clip;
    const part = { type: "file", file: { file_id: fileId } };
    if (!isImage) Object.assign(part, choice, baseline ? { baseline } : {});
    messages[0].content.unshift(part);
  }
  return { model, messages, ...sampling };
}

/** Asks, and calls `changed(turn)` as the answer grows. `stamped`: the model is told times of the file, not of the part. */
export async function ask(conversation, question, { model, sampling, stamped, withChecks }, changed) {
  if (!conversation.clip?.fileId) throw new Error(conversation.clip ? "Wait until the video is uploaded." : "Choose a video first.");
  const earlier = [...conversation.turns];
  const turn = { question, answer: "", state: "running", choice: { ...conversation.choice }, sampling, stamped, model };
  conversation.turns.push(turn);
  await run(conversation, turn, changed, async (signal) => {
    const began = performance.now();
    await ensureUploaded(conversation.clip, signal);
    for await (const event of api.stream(requestFor(conversation, { ...turn, turns: earlier }), signal)) {
      const piece = event.choices[0]?.delta.content;
      if (piece) {
        turn.wait ??= performance.now() - began;
        turn.answer += piece;
        changed(turn);
      }
      turn.about = event.videopanda ?? turn.about;
      turn.usage = event.usage ?? turn.usage;
    }
    turn.state = "done";
  });
  if (withChecks && turn.state === "done") await check(conversation, turn, changed);
}

/** The truth switch: asks the question of a turn again, with each baseline in place of the video. */
export async function check(conversation, turn, changed) {
  const turns = conversation.turns.slice(0, conversation.turns.indexOf(turn));
  turn.checks = {};
  await run(conversation, turn, changed, async (signal) => {
    await ensureUploaded(conversation.clip, signal);
    for (const baseline of baselinesFor(conversation, turn)) {
      turn.checks[baseline] = await api.reply(requestFor(conversation, { ...turn, turns, baseline }), signal);
      changed(turn);
    }
  });
}

/** What the answer of a turn depends on. The server gives the same answer again: it is greedy, or has its seed. */
export async function explain(conversation, turn, changed) {
  const turns = conversation.turns.slice(0, conversation.turns.indexOf(turn));
  conversation.explained = turn;
  await run(conversation, turn, changed, async (signal) => {
    try {
      await ensureUploaded(conversation.clip, signal);
      const steps = api.explain(requestFor(conversation, { ...turn, turns }), signal);
      turn.why = await lastOf(steps, conversation, () => changed(turn));
    } finally {
      conversation.explained = null;
    }
  });
}

/** Looks for when something happens in the part of the clip that is chosen. */
export async function find(conversation, description, model, changed) {
  const { num_frames: _, ...part } = conversation.choice; // the model is asked about many windows of few frames
  const moment = { description, part, state: "running" };
  conversation.moments.push(moment);
  await run(conversation, moment, changed, async (signal) => {
    await ensureUploaded(conversation.clip, signal);
    const video = { type: "file", file: { file_id: conversation.clip.fileId }, ...part };
    const found = await lastOf(api.find({ model, video, description }, signal), conversation, () => changed(moment));
    Object.assign(moment, { intervals: found.intervals, reason: found.reason, state: "done" });
  });
}

/** The result of an analysis, whose progress is that of the conversation. */
async function lastOf(steps, conversation, changed) {
  let last = null;
  for await (const event of steps) {
    last = event;
    if (event.total === undefined) continue;
    conversation.progress = event;
    changed();
  }
  return last;
}

/** An image has neither other frames nor an order, and a single frame has no order. */
export function baselinesFor(conversation, turn) {
  if (conversation.clip.isImage) return ["no_video"];
  return turn.about?.frame_times[0].length > 1 ? Object.keys(BASELINES) : ["no_video"];
}

async function run(conversation, turn, changed, work) {
  const running = new AbortController();
  conversation.running = running;
  const isFirst = turn.state === "running";
  delete turn.error;
  changed(turn);
  try {
    await work(running.signal);
  } catch (error) {
    if (isFirst) turn.state = running.signal.aborted ? "stopped" : "failed";
    if (!running.signal.aborted) turn.error = error.message;
  } finally {
    conversation.running = conversation.progress = null;
    changed(turn);
  }
}
