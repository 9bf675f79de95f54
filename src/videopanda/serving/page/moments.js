// Moments: when something happens in the clip, as the model finds it, in a list and on the timeline.

import { markMoments, seconds, seek } from "./timeline.js";

const $ = (id) => document.getElementById(id);
let marked = null; // the moment that the timeline shows, if it is one of the conversation

const element = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

/** Shows what was looked for in a conversation's clip; `acts` has what the buttons do: remove. */
export function showMoments(conversation, acts) {
  const { moments, progress } = conversation;
  const running = moments.find(({ state }) => state === "running");
  $("finding").hidden = !running;
  if (running) showProgress($("finding-bar"), $("finding-text"), progress);
  const settled = moments.filter(({ state }) => state === "done" || state === "failed");
  if (running) marked = running;
  else if (!settled.includes(marked)) marked = settled.at(-1);
  const show = (moment) => {
    marked = moment;
    showMoments(conversation, acts);
  };
  $("moments").replaceChildren(...settled.map((moment) => entry(moment, show, acts)));
  markMoments(marked?.intervals ?? []);
}

export function showProgress(bar, text, progress) {
  if (progress?.total) Object.assign(bar, { max: progress.total, value: progress.done });
  else bar.removeAttribute("value");
  text.textContent = progress?.total ? `${progress.done} of ${progress.total} steps` : "Starting …";
}

function entry(moment, show, acts) {
  const { description, part, state, intervals, reason, error } = moment;
  const item = element("li", { className: moment === marked ? "marked" : "" }, element("span", { className: "what", textContent: description }));
  if (state === "failed") item.append(element("span", { className: "error", textContent: error }));
  else if (!intervals.length) item.append(element("span", { className: "quiet", textContent: reason }));
  for (const { start, end, confidence } of intervals ?? []) {
    const text = `${seconds(start)} – ${seconds(end)}`;
    const link = element("button", { type: "button", className: "link time", textContent: text });
    link.setAttribute("aria-label", `${description}: ${text}, ${percent(confidence)} likely. Show it in the video`);
    link.addEventListener("click", () => {
      show(moment);
      seek(start);
      $("moments").querySelector(".marked .time")?.focus();
    });
    item.append(link, element("span", { className: "quiet", textContent: percent(confidence) }));
  }
  if (part.start !== undefined || part.end !== undefined) {
    const range = [part.start === undefined ? "" : `from ${seconds(part.start)}`, part.end === undefined ? "" : `to ${seconds(part.end)}`];
    item.append(element("span", { className: "quiet", textContent: `(looked at: ${range.join(" ").trim()})` }));
  }
  const remove = element("button", { type: "button", className: "link remove", textContent: "×" });
  remove.setAttribute("aria-label", `Remove: ${description}`);
  remove.addEventListener("click", () => acts.remove(moment));
  item.append(remove);
  return item;
}

const percent = (value) => `${(100 * value).toFixed(0)} %`;
