// The page: one video, one conversation, over the API of this server. No library, nothing from elsewhere.

const $ = (id) => document.getElementById(id);
const state = { model: null, key: "", file: null, messages: [], running: null };

const headers = (extra = {}) => (state.key ? { ...extra, Authorization: `Bearer ${state.key}` } : extra);

async function checked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `The server answers with status ${response.status}.`);
}

const api = async (path, options = {}) =>
  checked(await fetch(path, { ...options, headers: headers(options.headers) }));

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// -- the video ---------------------------------------------------------------------------------------------------------
async function choose(file) {
  stop();
  problem("");
  state.file = null;
  state.messages = [];
  for (const id of ["log", "frames", "ideas"]) $(id).replaceChildren();
  for (const id of ["seen", "player", "picture"]) $(id).hidden = true;
  $("status").textContent = `Uploading ${file.name} …`;
  const form = new FormData();
  form.append("purpose", "user_data");
  form.append("file", file);
  try {
    const uploaded = await (await api("/v1/files", { method: "POST", body: form })).json();
    $("status").textContent = "Looking at it …";
    const seen = await (await api(`/v1/files/${uploaded.id}/frames`)).json();
    const isImage = uploaded.videopanda.kind === "image";
    show(file, isImage, seen);
    state.file = { id: uploaded.id, name: file.name, isImage };
    $("status").textContent = isImage ? file.name : `${file.name}, ${seen.duration.toFixed(1)} s`;
    $("question").focus();
  } catch (error) {
    $("status").textContent = "";
    problem(`${file.name}: ${error.message}`);
  }
}

function show(file, isImage, seen) {
  const shown = $(isImage ? "picture" : "player");
  URL.revokeObjectURL(shown.src);
  shown.src = URL.createObjectURL(file);
  shown.hidden = false;
  $("seen-note").textContent = isImage ? "" : `${seen.data.length} of ${Math.round(seen.duration * seen.fps)} frames`;
  for (const frame of seen.data) {
    const time = `${frame.time.toFixed(2)} s`;
    const picture = Object.assign(new Image(), { src: frame.image, alt: "" });
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Frame at ${time}: show it in the video`);
    button.append(picture, Object.assign(document.createElement("span"), { textContent: time }));
    button.addEventListener("click", () => { $("player").currentTime = frame.time; });
    const item = document.createElement("li");
    item.append(button);
    $("frames").append(item);
  }
  $("seen").hidden = false;
}

async function example() {
  const [clip, about] = await Promise.all(["demo.mp4", "demo.json"].map((name) => api(`/examples/${name}`)));
  await choose(new File([await clip.blob()], "demo.mp4", { type: "video/mp4" }));
  for (const { question } of (await about.json()).questions) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "plain", textContent: question });
    button.addEventListener("click", () => ask(question));
    $("ideas").append(button);
  }
}

// -- the conversation --------------------------------------------------------------------------------------------------
function message(question) {
  const text = { type: "text", text: question };
  const shown = state.messages.length || !state.file ? [] : [{ type: "file", file: { file_id: state.file.id } }];
  return { role: "user", content: [...shown, text] };
}

function line(role, text = "") {
  const item = document.createElement("li");
  item.className = role;
  const said = Object.assign(document.createElement("span"), { className: "text", textContent: text });
  item.append(said);
  $("log").append(item);
  $("log").scrollTop = $("log").scrollHeight;
  return { item, said };
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function ask(question) {
  if (state.running || !question.trim()) return;
  const asked = message(question);
  line("user", question);
  const { item, said } = line("assistant");
  item.classList.add("waiting");
  $("question").value = "";
  const running = new AbortController();
  state.running = running;
  $("send").disabled = true;
  $("stop").disabled = false;
  const began = performance.now();
  let first = null, text = "", about = null, usage = null;
  try {
    const response = await api("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      signal: running.signal,
      body: JSON.stringify({
        model: state.model, messages: [...state.messages, asked], stream: true, stream_options: { include_usage: true },
      }),
    });
    for await (const event of events(response)) {
      const piece = event.choices[0]?.delta.content;
      if (piece) {
        first ??= performance.now();
        text += piece;
        said.textContent = text;
        $("log").scrollTop = $("log").scrollHeight;
      }
      about = event.videopanda ?? about;
      usage = event.usage ?? usage;
    }
    state.messages.push(asked, { role: "assistant", content: text });
    note(item, about, usage, (first ?? performance.now()) - began);
  } catch (error) {
    if (running.signal.aborted) {
      note(item, null, null, 0);
      if (text) state.messages.push(asked, { role: "assistant", content: text });
    } else {
      item.classList.add("failed");
      said.textContent = error.message;
    }
  } finally {
    item.classList.remove("waiting");
    if (state.running === running) state.running = null;
    $("send").disabled = Boolean(state.running);
    $("stop").disabled = !state.running;
  }
}

function note(item, about, usage, wait) {
  let text = "stopped";
  if (about) {
    const known = usage?.prompt_tokens_details.cached_tokens ?? 0;
    const seen = about.visual_tokens ? `${about.visual_tokens} visual tokens${known ? ", read before" : ""} · ` : "";
    text = `${seen}first word after ${(wait / 1000).toFixed(2)} s`;
    item.dataset.known = known;
  }
  item.append(Object.assign(document.createElement("span"), { className: "note", textContent: text }));
  $("log").scrollTop = $("log").scrollHeight;
}

function stop() {
  state.running?.abort();
}

// -- code --------------------------------------------------------------------------------------------------------------
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function code(language) {
  const question = $("question").value.trim() || $("log").querySelector(".user:last-of-type .text")?.textContent
    || "What happens in this video?";
  const name = state.file?.name ?? "clip.mp4";
  const server = location.origin;
  if (language === "python") {
    return `from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${server}/v1`)}, api_key="none")
file = client.files.create(file=open(${JSON.stringify(name)}, "rb"), purpose="user_data")
answer = client.chat.completions.create(
    model=${JSON.stringify(state.model)},
    messages=[{"role": "user", "content": [
        {"type": "file", "file": {"file_id": file.id}},
        {"type": "text", "text": ${JSON.stringify(question)}},
    ]}],
)
print(answer.choices[0].message.content)`;
  }
  const body = JSON.stringify({
    model: state.model,
    messages: [{ role: "user", content: [{ type: "file", file: { file_id: "FILE" } }, { type: "text", text: question }] }],
  });
  const key = state.key ? ' -H "Authorization: Bearer $KEY"' : "";
  return `FILE=$(curl -s${key} -F ${quoted(`file=@${name}`)} ${server}/v1/files | sed 's/.*"id":"\\([^"]*\\)".*/\\1/')
curl -s${key} -H 'Content-Type: application/json' ${server}/v1/chat/completions \\
  -d ${quoted(body).replace("FILE", `'"$FILE"'`)}`;
}

async function copy(language) {
  const text = code(language);
  $("code-title").textContent = language === "curl" ? "The same with curl" : "The same in Python";
  $("code-text").textContent = text;
  $("copied").textContent = "";
  $("code").showModal();
  try {
    await navigator.clipboard.writeText(text);
    $("copied").textContent = "Copied.";
  } catch {
    $("copied").textContent = "Select it to copy it.";
  }
}

// -- start -------------------------------------------------------------------------------------------------------------
function theme() {
  const isDark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
}

async function start() {
  const health = await (await fetch("/health")).json();
  state.model = health.model;
  $("model").textContent = health.model;
  $("key-form").hidden = !health.needs_key;
}

$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) choose(file);
});
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
}
$("example").addEventListener("click", () => example().catch((error) => problem(error.message)));
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("question").value);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask($("question").value);
  }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
$("stop").addEventListener("click", stop);
$("theme").addEventListener("click", theme);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  problem("");
});
for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button.dataset.language));
start().catch(() => problem("The server cannot be reached."));
