// The turns of the conversation that is shown, each as two items of the log: the question, and the answer with its notes.

import { BASELINES } from "./conversation.js";
import { render } from "./markdown.js";
import { showProgress } from "./moments.js";
import { seconds, seek } from "./timeline.js";
import { showWhy } from "./why.js";

const log = document.getElementById("log");
let items = new WeakMap(); // turn -> the item of its answer

const element = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

const button = (text, className, act) => {
  const made = element("button", { type: "button", className: `link ${className}`, textContent: text });
  made.addEventListener("click", act);
  return made;
};

/** Shows all turns of a conversation. `acts` has what the buttons do: again, edit, check, copy, why. */
export function showLog(conversation, acts) {
  items = new WeakMap();
  log.replaceChildren();
  for (const turn of conversation.turns) showTurn(conversation, turn, acts);
}

/** Shows a turn that is new, or shows again what has changed in it. */
export function showTurn(conversation, turn, acts) {
  let item = items.get(turn);
  if (!item) {
    const question = element("div", { className: "user" }, element("span", { className: "text", textContent: turn.question }));
    question.append(element("span", { className: "acts" }, button("Edit", "edit", () => acts.edit(turn))));
    item = element("div", { className: "assistant" });
    items.set(turn, item);
    log.append(question, item);
  }
  const isLowest = log.scrollHeight - log.scrollTop - log.clientHeight < 120;
  showAnswer(conversation, turn, item, acts);
  if (isLowest) log.scrollTop = log.scrollHeight;
}

export function focusOnWhy(turn) {
  items.get(turn).querySelector(".why summary").focus();
}

function showAnswer(conversation, turn, item, acts) {
  const isRunning = turn.state === "running";
  item.className = `assistant ${isRunning && !turn.answer ? "waiting" : ""} ${turn.state === "failed" ? "failed" : ""}`;
  const isExplained = conversation.explained === turn;
  item.setAttribute("aria-busy", String(isRunning || isExplained)); // else all of it is read aloud again and again
  const said = element("div", { className: "text" }, render(turn.answer, timeLink(conversation, turn)));
  item.replaceChildren(said);
  if (turn.error) item.append(element("p", { className: "error", textContent: turn.error }));
  if (isRunning) return;
  item.dataset.known = turn.usage?.prompt_tokens_details.cached_tokens ?? 0;
  if (turn.state !== "failed") item.append(element("span", { className: "note", textContent: note(turn) }));
  if (turn.checks) item.append(checks(turn, Boolean(conversation.running) && !isExplained));
  if (isExplained) item.append(explaining(conversation.progress));
  if (turn.why) item.append(showWhy(conversation, turn));
  const buttons = element("span", { className: "acts" });
  if (turn.state === "done") {
    buttons.append(button("Copy", "copy-answer", () => acts.copy(turn)));
    buttons.append(button("Check against the video", "check", () => acts.check(turn)));
    if (!turn.why) buttons.append(button("Why?", "ask-why", () => acts.why(turn)));
  }
  buttons.append(button(turn.state === "done" ? "Another answer" : "Try again", "again", () => acts.again(turn)));
  item.append(buttons);
}

function explaining(progress) {
  const bar = element("progress", {}), text = element("span", { className: "quiet" });
  bar.setAttribute("aria-label", "Progress of the explanation");
  showProgress(bar, text, progress);
  const title = element("p", { className: "verdict", textContent: "Removing the frames one by one …" });
  return element("div", { className: "explaining" }, title, element("p", { className: "row" }, bar, text));
}

function note(turn) {
  if (turn.state === "stopped") return "stopped";
  const { about, usage } = turn;
  const times = about.frame_times[0] ?? [];
  const known = usage?.prompt_tokens_details.cached_tokens ? ", cached" : "";
  const parts = [`${about.visual_tokens} visual tokens${known}`];
  if (times.length > 1) parts.push(`${times.length} frames from ${seconds(times[0])} to ${seconds(times.at(-1))}`);
  if (turn.wait) parts.push(`first word after ${seconds(turn.wait / 1000)}`);
  if (turn.sampling) parts.push(`sampled at temperature ${turn.sampling.temperature}`);
  return parts.join(" · ");
}

/** Times in an answer count from the start of the part that was shown, unless the model is told those of the file. */
function timeLink(conversation, turn) {
  return (text, time) => {
    const { isImage, duration } = conversation.clip;
    const moment = (turn.stamped ? 0 : turn.choice.start ?? 0) + time;
    if (isImage || moment > duration) return null;
    const link = button(text, "time", () => seek(moment));
    link.setAttribute("aria-label", `${text}: show this moment in the video`);
    return link;
  };
}

const plain = (text) => text.trim().toLowerCase();

function checks(turn, isRunning) {
  const rows = Object.entries(turn.checks).map(([baseline, answer]) => {
    const isSame = plain(answer) === plain(turn.answer);
    return element(
      "tr",
      { className: isSame ? "same" : "" },
      element("th", { scope: "row", textContent: BASELINES[baseline] }),
      element("td", { textContent: answer }),
      element("td", { textContent: isSame ? "the same" : "a different answer" }),
    );
  });
  const verdict = element("p", { className: "verdict", textContent: isRunning ? "Asking again …" : conclusion(turn) });
  return element("div", { className: "checks" }, element("table", {}, element("tbody", {}, ...rows)), verdict);
}

function conclusion({ checks: answers, answer }) {
  if (answers.no_video === undefined) return "Stopped.";
  const isSame = (baseline) => answers[baseline] !== undefined && plain(answers[baseline]) === plain(answer);
  if (isSame("no_video")) return "The same answer without the video: it may not come from what the video shows.";
  const further = [];
  if (isSame("shuffled")) further.push("the order of the frames does not matter");
  if (isSame("one_frame")) further.push("one frame is enough");
  return `The answer depends on the video${further.length ? `; ${further.join(", and ")}` : ""}.`;
}
