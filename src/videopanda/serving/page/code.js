// What can be taken away: the request for a question as code, and a conversation as JSON.

import { requestFor } from "./conversation.js";

const $ = (id) => document.getElementById(id);
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Code that uploads the clip of a conversation and asks what `asked` describes; see `requestFor`. */
function codeFor(language, conversation, asked, needsKey) {
  const { model, messages, ...sampling } = requestFor(conversation, asked);
  const { name, fileId } = conversation.clip;
  const file = JSON.stringify(fileId); // in a question its quotes would be escaped, so only the id itself is replaced
  const server = location.origin;
  if (language === "python") {
    const more = Object.entries(sampling).map(([key, value]) => `\n    ${key}=${value},`).join("");
    return `${needsKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${server}/v1`)}, api_key=${needsKey ? 'os.environ["KEY"]' : '"none"'})
file = client.files.create(file=open(${JSON.stringify(name)}, "rb"), purpose="user_data")
answer = client.chat.completions.create(
    model=${JSON.stringify(model)},
    messages=${JSON.stringify(messages, null, 4).replaceAll(file, "file.id").replaceAll("\n", "\n    ")},${more}
)
print(answer.choices[0].message.content)`;
  }
  const body = JSON.stringify({ model, messages, ...sampling });
  const key = needsKey ? ' -H "Authorization: Bearer $KEY"' : "";
  return `FILE=$(curl -s${key} -F ${quoted(`file=@${name}`)} ${server}/v1/files | sed 's/.*"id":"\\([^"]*\\)".*/\\1/')
curl -s${key} -H 'Content-Type: application/json' ${server}/v1/chat/completions \\
  -d ${quoted(body).replaceAll(file, `"'"$FILE"'"`)}`;
}

/** Shows the code for a question, and copies it. */
export async function copyCode(language, conversation, asked, needsKey) {
  const text = codeFor(language, conversation, asked, needsKey);
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

/** Downloads a conversation as JSON. */
export function exportAsJson({ id, created, clip, turns, moments }, model) {
  const { name, duration, isImage } = clip;
  const kept = { model, id, created: new Date(created).toISOString(), clip: { name, duration, isImage }, turns, moments };
  const url = URL.createObjectURL(new Blob([JSON.stringify(kept, null, 2)], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href: url, download: `${name}.conversation.json` }).click();
  URL.revokeObjectURL(url);
}
