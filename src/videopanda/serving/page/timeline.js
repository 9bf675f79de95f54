// The timeline: the part of the clip to look at, how many frames of it, what that costs, and the frames themselves.

const $ = (id) => document.getElementById(id);
const LEAST_SECONDS = 0.1; // between the handles
export const WITH_REGIONS = 3; // frames of which an explanation tells regions, at most
const PATIENCE = 250; // milliseconds without a change before the server is asked for the frames

let shown = null; // { conversation, seen, maxFrames, context, pace, why }
let changing = null;

export const seconds = (value, digits = 2) => `${value.toFixed(digits)} s`;

/** Shows the frames of a conversation's clip, as the server tells them, and the controls that choose them. */
export function showTimeline(conversation, seen, limits) {
  shown = { conversation, seen, ...limits };
  const { isImage } = conversation.clip;
  $("timeline").hidden = isImage;
  $("seen").hidden = false;
  const total = Math.max(1, Math.round(seen.duration * seen.fps));
  $("seen-note").textContent = isImage ? `${seen.visual_tokens} tokens` : `${seen.data.length} of ${total} frames`;
  showFrames(seen, isImage);
  if (isImage) return;
  const { start = 0, end = seen.duration } = conversation.choice;
  for (const [id, value] of [["start", start], ["end", end]]) {
    $(id).max = seen.duration;
    $(id).value = value;
  }
  $("count").max = Math.max(seen.data.length, Math.min(limits.maxFrames, total));
  $("count").value = seen.data.length;
  showPart();
  showCost();
  showTicks();
  if ($("player").hidden && $("picture").hidden) showStills();
}

export function hideTimeline() {
  shown = null;
  $("playhead").style.left = 0;
  for (const id of ["timeline", "seen"]) $(id).hidden = true;
}

function showFrames(seen, isImage) {
  $("frames").replaceChildren(...seen.data.map((frame) => {
    const picture = Object.assign(new Image(), { src: frame.image, alt: isImage ? "The image, as the model sees it" : "" });
    const item = document.createElement("li");
    if (isImage) {
      item.append(picture);
      return item;
    }
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Frame at ${seconds(frame.time)}: show it in the video`);
    button.append(picture, Object.assign(document.createElement("span"), { textContent: seconds(frame.time) }));
    button.addEventListener("click", () => seek(frame.time));
    item.append(button);
    return item;
  }));
}

function showPart() {
  const { duration } = shown.seen;
  const [start, end] = [Number($("start").value), Number($("end").value)];
  $("part").textContent = `${seconds(start, 1)} to ${seconds(end, 1)} of ${seconds(duration, 1)}`;
  $("range").style.left = `${(100 * start) / duration}%`;
  $("range").style.width = `${(100 * (end - start)) / duration}%`;
  $("start").setAttribute("aria-valuetext", seconds(start, 1));
  $("end").setAttribute("aria-valuetext", seconds(end, 1));
}

function showCost() {
  const { seen, context, pace, why } = shown;
  const tokens = seen.visual_tokens;
  const time = pace === null ? "" : `, about ${(pace * tokens).toFixed(1)} s to read`;
  const count = seen.data.length;
  const requests = why === null ? 0 : 2 + 2 * count + why.regions * Math.min(count, WITH_REGIONS);
  const reasons = requests ? `, about ${(why.pace * requests * tokens).toFixed(1)} s for “Why?”` : "";
  const excess = tokens >= context ? `: more than the model's context of ${context}` : "";
  $("cost").textContent = `${count}: ${tokens} tokens${time}${reasons}${excess}`;
  $("cost").classList.toggle("excess", Boolean(excess));
}

/** Marks the frames that would be looked at, and those that the last answer was made from. */
export function showTicks() {
  if (!shown || shown.conversation.clip.isImage) return;
  const looked = shown.conversation.turns.findLast((turn) => turn.about?.frame_times.length)?.about.frame_times[0] ?? [];
  const mark = (kind) => (time) => {
    const tick = document.createElement("span");
    tick.className = kind;
    tick.style.left = `${(100 * time) / shown.seen.duration}%`;
    return tick;
  };
  $("ticks").replaceChildren(...shown.seen.data.map(({ time }) => time).map(mark("tick")), ...looked.map(mark("tick looked")));
}

/** Marks intervals of the clip, { start, end }, in which something was found. */
export function markMoments(intervals) {
  $("found-key").hidden = !intervals.length;
  if (!shown) return;
  $("found").replaceChildren(...intervals.map(({ start, end }) => {
    const mark = document.createElement("span");
    Object.assign(mark.style, { left: `${(100 * start) / shown.seen.duration}%`, width: `${(100 * (end - start)) / shown.seen.duration}%` });
    return mark;
  }));
}

export function showPace(paces) {
  if (!shown || shown.conversation.clip.isImage) return;
  Object.assign(shown, paces);
  showCost();
}

/** Shows a moment: in the player, or, of a clip that the browser cannot play, the nearest frame. */
export function seek(time) {
  if (!$("player").hidden) {
    $("player").currentTime = time;
    return;
  }
  const distance = (frame) => Math.abs(frame.time - time);
  const nearest = shown.seen.data.reduce((best, frame) => (distance(frame) < distance(best) ? frame : best));
  Object.assign($("picture"), { src: nearest.image, alt: `The frame at ${seconds(nearest.time)}`, hidden: false });
  showPlayhead(nearest.time);
}

function showPlayhead(time) {
  $("playhead").style.left = `${(100 * time) / shown.seen.duration}%`;
}

/** In place of a clip that the browser cannot play: its frames. */
export function showStills() {
  $("player").hidden = true;
  if (shown) seek(0);
}

/** Sets up the controls; `changed(conversation)` is called when other frames are chosen, after a short rest. */
export function startTimeline(changed) {
  const choose = (id) => {
    const { conversation, seen } = shown;
    const [start, end] = [$("start"), $("end")];
    if (id === "start") start.value = Math.min(start.value, end.value - LEAST_SECONDS);
    if (id === "end") end.value = Math.max(end.value, Number(start.value) + LEAST_SECONDS);
    const choice = { ...conversation.choice };
    if (id === "count") choice.num_frames = Number($("count").value);
    if (id === "start") choice.start = Number(Number(start.value).toFixed(2));
    if (id === "end") choice.end = Number(Number(end.value).toFixed(2));
    if (choice.start === 0) delete choice.start;
    if (choice.end >= Number(seen.duration.toFixed(2))) delete choice.end;
    conversation.choice = choice;
    if (id === "count") $("cost").textContent = `${choice.num_frames}: counting tokens …`;
    else {
      showPart();
      seek(Number($(id).value));
    }
    clearTimeout(changing);
    changing = setTimeout(() => changed(conversation), PATIENCE);
  };
  for (const id of ["start", "end", "count"]) $(id).addEventListener("input", () => choose(id));
  $("player").addEventListener("timeupdate", () => {
    if (shown) showPlayhead($("player").currentTime);
  });
}
