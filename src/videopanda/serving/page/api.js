// Requests to this server, with the API key if it needs one.

export const access = { key: "" };

class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function api(path, options = {}) {
  const headers = access.key ? { ...options.headers, Authorization: `Bearer ${access.key}` } : options.headers;
  const response = await fetch(path, { ...options, headers }).catch(unreachable("The server cannot be reached."));
  if (response.ok) return response;
  if (response.status === 401) throw new ApiError(401, access.key ? "The server does not accept this API key." : "Enter the API key of this server first.");
  const body = await response.json().catch(() => null);
  throw new ApiError(response.status, body?.error?.message ?? `The server answers with status ${response.status}.`);
}

const LOST = "The connection to the server was lost.";

/** In place of the browser's own words for a server that is gone; a request that was stopped stays what it is. */
const unreachable = (message) => (error) => {
  throw error.name === "AbortError" ? error : new ApiError(0, message);
};

const json = async (path, options) => (await api(path, options)).json();

export const health = () => json("/health");
export const modelInfo = async () => (await json("/v1/models")).data[0];

export async function example() {
  const [clip, about] = await Promise.all([api("/examples/demo.mp4"), json("/examples/demo.json")]);
  return {
    file: new File([await clip.blob()], "demo.mp4", { type: "video/mp4" }),
    questions: about.questions.map(({ question }) => question),
  };
}

/** Uploads a clip: { id, isImage }. */
export async function upload(blob, name) {
  const form = new FormData();
  form.append("purpose", "user_data");
  form.append("file", blob, name);
  const stored = await json("/v1/files", { method: "POST", body: form });
  return { fileId: stored.id, isImage: stored.videopanda.kind === "image" };
}

/** Whether the server still has an uploaded file: uploads expire. */
export async function isStored(fileId, signal) {
  try {
    await api(`/v1/files/${fileId}`, { signal });
    return true;
  } catch (error) {
    if (error.status === 404) return false;
    throw error;
  }
}

export const content = async (fileId) => (await api(`/v1/files/${fileId}/content`)).blob();

/** The frames that a question with this choice would use, and the tokens that they take. */
export const frames = (fileId, choice, signal) => json(`/v1/files/${fileId}/frames?${new URLSearchParams(choice)}`, { signal });

// -- live sessions -----------------------------------------------------------------------------------------------------
const SESSIONS = "/v1/streaming/sessions";
const posted = (path, body, signal) => json(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, signal, body: JSON.stringify(body),
});

/** A session about everything so far; or, for models that cannot read an endless video, about the last frames. */
export async function openSession(model, lastFrames) {
  try {
    return { id: (await posted(SESSIONS, { model })).id, seen: "all pictures so far" };
  } catch (error) {
    if (error.status !== 400) throw error;
    return { id: (await posted(SESSIONS, { model, last_frames: lastFrames })).id, seen: `the last ${lastFrames} pictures` };
  }
}

/** Shows a session one more picture, taken `timestamp` seconds after the first. */
export const pushFrame = (id, picture, timestamp, signal) =>
  json(`${SESSIONS}/${id}/frame?timestamp=${timestamp}`, { method: "POST", signal, body: picture });

export const askSession = (id, question, signal) => posted(`${SESSIONS}/${id}/ask`, { question }, signal);

export const closeSession = (id) => api(`${SESSIONS}/${id}`, { method: "DELETE" });

// -- questions ---------------------------------------------------------------------------------------------------------
const chat = (body, signal) => api("/v1/chat/completions", {
  method: "POST", headers: { "Content-Type": "application/json" }, signal, body: JSON.stringify(body),
});

/** What an answer depends on: the server answers `body` again, and takes its frames away one by one. */
export const explain = (body, signal) => analysis("/v1/explain", body, signal);

/** When something happens in a clip. */
export const find = (body, signal) => analysis("/v1/find", body, signal);

/** The events of an analysis: { done, total } of its requests again and again, and last what was found. */
async function* analysis(path, body, signal) {
  yield* events(await api(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, signal, body: JSON.stringify({ ...body, stream: true }),
  }));
}

/** The text of a reply. */
export async function reply(body, signal) {
  return (await (await chat(body, signal)).json()).choices[0].message.content;
}

/** The events of a streamed reply. */
export async function* stream(body, signal) {
  yield* events(await chat({ ...body, stream: true, stream_options: { include_usage: true } }, signal));
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(unreachable(LOST));
    if (done) throw new Error(LOST);
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
