// The request for a question, as code to copy.

import { requestFor } from "./conversation.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Code that uploads the clip of a conversation and asks what `asked` describes; see `requestFor`. */
export function codeFor(language, conversation, asked, needsKey) {
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
