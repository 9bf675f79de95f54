// Why an answer: what the server says about each frame of it, as a sentence, a timeline and pictures.
//
// A frame was knocked out, its visual tokens replaced by those of an empty clip, and the probability of the same answer
// computed again; and it was kept alone, all others being empty. See inference/explain.py.

import * as api from "./api.js";
import { ensureUploaded } from "./conversation.js";
import { seconds, seek } from "./timeline.js";

const NOTICEABLE = 0.1; // of a probability
const METHOD = "Each frame was removed, and then kept alone, and the model computed how probable the same answer is. "
  + "This shows what the answer depends on, not whether it is right. Numbers are percentage points. The bars add up both tests, as logarithms, so that frames that resemble each other are not overlooked.";

const pictures = new WeakMap(); // turn -> promise of the pictures of its frames
const closed = new WeakSet(); // turns whose explanation was folded

const element = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

const percent = (value) => `${(100 * value).toFixed(1)} %`;
const points = (value) => `${value < -0.005 ? "−" : "+"}${Math.abs(100 * value).toFixed(0)}\u00a0%`;

/** The explanation of a turn. */
export function showWhy(conversation, turn) {
  const { probability, empty, frames } = turn.why;
  const { isImage, duration } = conversation.clip;
  const images = frames.map(() => new Image());
  const shown = element("details", { className: "why", open: !closed.has(turn) }, element("summary", { textContent: "Why?" }));
  shown.addEventListener("toggle", () => (shown.open ? closed.delete(turn) : closed.add(turn)));
  shown.append(
    element("p", { className: "verdict", textContent: conclusion(turn.why, isImage) }),
    element("p", { className: "quiet", textContent: `Probability of this answer: ${percent(probability)} with the ${isImage ? "image" : "video"}, ${percent(empty)} with an empty one.` }),
  );
  if (!isImage) shown.append(timeline(frames, duration));
  shown.append(element("ol", { className: "effects" }, ...frames.map((_, place) => card(turn.why, place, images[place], isImage))));
  if (!isImage) shown.append(element("p", { className: "quiet", textContent: METHOD }));
  fill(conversation, turn, images);
  return shown;
}

/** What the numbers say, in a sentence. */
function conclusion({ probability, empty, frames }, isImage) {
  const list = (chosen) => chosen.map(({ time }) => seconds(time)).join(", ");
  if (probability - empty < NOTICEABLE) return `The answer is about as likely with an empty ${isImage ? "image" : "video"}: it may not come from what is shown.`;
  if (isImage) return "The answer depends on the image.";
  const needed = frames.filter(({ fall }) => fall >= NOTICEABLE);
  if (needed.length) return `Without ${needed.length > 1 ? "any one of the frames" : "the frame"} at ${list(needed)} the answer is less likely.`;
  const enough = frames.filter(({ alone }) => alone >= NOTICEABLE);
  if (enough.length > 1) return `No single frame is needed: each of those at ${list(enough)} makes the answer likely on its own.`;
  if (enough.length) return `The frame at ${list(enough)} alone makes the answer likely.`;
  return "No single frame decides: the answer comes from several together.";
}

const greatest = (frames) => Math.max(...frames.map(({ weight }) => weight), 1e-6);

function timeline(frames, duration) {
  const line = element("div", { className: "line" });
  line.setAttribute("aria-hidden", "true"); // the list says the same
  for (const { time, weight } of frames) {
    const bar = document.createElement("span");
    bar.style.left = `${(100 * time) / duration}%`;
    bar.style.height = `${Math.max(2, (100 * Math.max(0, weight)) / greatest(frames))}%`;
    line.append(bar);
  }
  return line;
}

function card({ frames, regions }, place, image, isImage) {
  const { time, fall, alone, weight } = frames[place];
  const own = regions.filter((region) => region.frame === place);
  image.alt = "";
  const picture = element("span", { className: "seen" }, image, ...boxes(own, regions));
  const facts = [`without it ${points(-fall)}`, `alone ${points(alone)}`];
  if (isImage) return element("li", {}, picture, element("span", { className: "quiet", textContent: region(own) }));
  const bar = element("span", { className: "weight" }, document.createElement("span"));
  bar.firstChild.style.width = `${(100 * Math.max(0, weight)) / greatest(frames)}%`;
  const spoken = (textContent) => element("span", { className: "hidden", textContent });
  const [missing, only] = facts.map((textContent) => element("span", { className: "quiet", textContent }));
  const button = element(
    "button",
    { type: "button" },
    picture, bar, spoken("Frame at "), element("span", { textContent: seconds(time) }), spoken(": "), missing, spoken(", "), only,
    spoken(`. ${region(own)} Show it in the video`),
  );
  button.addEventListener("click", () => seek(time));
  return element("li", {}, button);
}

/** The regions whose loss is noticed, the stronger the more they matter. */
function boxes(own, all) {
  const most = Math.max(...all.map(({ fall }) => fall), NOTICEABLE);
  return own.filter(({ fall }) => fall > most / 4).map(({ left, top, right, bottom, fall }) => {
    const box = element("span", { className: "region" });
    Object.assign(box.style, {
      left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`, opacity: (0.6 * fall) / most,
    });
    return box;
  });
}

/** Where the region is whose loss is noticed most, in words. */
function region(own) {
  const most = own.reduce((best, one) => (one.fall > best.fall ? one : best), { fall: 0 });
  if (most.fall < NOTICEABLE) return "";
  const third = (middle, names) => names[Math.min(2, Math.floor(3 * middle))];
  const row = third((most.top + most.bottom) / 2, ["top", "middle", "bottom"]);
  const column = third((most.left + most.right) / 2, ["left", "center", "right"]);
  return `What matters most in it: ${row} ${column}, ${points(-most.fall)} without it.`;
}

/** Loads the pictures: they are too large to be kept with the conversation. */
async function fill(conversation, turn, images) {
  if (!pictures.has(turn)) {
    pictures.set(turn, ensureUploaded(conversation.clip).then(() => api.frames(conversation.clip.fileId, turn.choice)));
  }
  try {
    const { data } = await pictures.get(turn);
    images.forEach((image, place) => { image.src = data[place].image; });
  } catch { // the clip is gone: the numbers remain
    pictures.delete(turn);
    for (const image of images) image.hidden = true;
  }
}
