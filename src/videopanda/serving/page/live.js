// A live session: pictures of the camera go to the server one after another, and questions are about them.
// It has no history: each question is asked alone, and nothing of it is kept when it ends.

import * as api from "./api.js";

const $ = (id) => document.getElementById(id);
const SECONDS_BETWEEN = 1;

let live = null; // { id, seen, camera, ended: AbortController }

/** Opens the dialog and starts the camera. Throws what the browser or the server say against it. */
export async function startLive(model, lastFrames) {
  if (!navigator.mediaDevices) throw new Error("Browsers allow the camera only on https pages and on localhost.");
  const camera = await navigator.mediaDevices.getUserMedia({ video: true });
  const session = { camera, ended: new AbortController() };
  try {
    Object.assign(session, await api.openSession(model, lastFrames));
  } catch (error) {
    for (const track of camera.getTracks()) track.stop();
    throw error;
  }
  live = session;
  $("live-log").replaceChildren();
  $("live-status").textContent = "";
  $("camera").srcObject = camera;
  $("live").showModal();
  await $("camera").play();
  send(session);
}

async function send(session) {
  const canvas = document.createElement("canvas");
  const began = performance.now();
  try {
    while (live === session) {
      const { videoWidth: width, videoHeight: height } = $("camera");
      Object.assign(canvas, { width, height }).getContext("2d").drawImage($("camera"), 0, 0);
      const picture = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
      const time = (performance.now() - began) / 1000;
      const pushed = await api.pushFrame(session.id, picture, time.toFixed(3), session.ended.signal);
      $("live-status").textContent = `Sent: ${pushed.frames}. The model sees ${session.seen}.`;
      await new Promise((resolve) => setTimeout(resolve, 1000 * SECONDS_BETWEEN));
    }
  } catch (error) {
    if (live === session) $("live-status").textContent = error.message;
  }
}

async function askLive(question) {
  const session = live;
  $("live-question").value = "";
  const line = (className, textContent) => Object.assign(document.createElement("div"), { className, textContent });
  const answer = line("assistant", "…");
  $("live-log").append(line("user", question), answer);
  try {
    const said = await api.askSession(session.id, question, session.ended.signal);
    answer.textContent = `${said.answer} (at ${said.timestamp.toFixed(0)} s, ${said.visual_tokens} visual tokens)`;
  } catch (error) {
    answer.textContent = error.message;
  }
  $("live-log").scrollTop = $("live-log").scrollHeight;
}

function stopLive() {
  const { id, camera, ended } = live;
  live = null;
  ended.abort();
  for (const track of camera.getTracks()) track.stop();
  $("camera").srcObject = null;
  api.closeSession(id).catch(() => {}); // the server closes it by itself after a while
}

export function listenLive() {
  $("live").addEventListener("close", stopLive);
  $("live-ask").addEventListener("submit", (event) => {
    event.preventDefault();
    askLive($("live-question").value);
  });
  $("live-close").addEventListener("click", () => $("live").close());
}
