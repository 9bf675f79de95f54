// openai for JavaScript, unmodified: chat completions and responses, whole and streamed.
import assert from "node:assert/strict";
import { createReadStream } from "node:fs";
import { before, test } from "node:test";
import OpenAI, { BadRequestError } from "openai";
import { apiKey, baseURL, clip, dataUrl, question, wanted } from "./setup.js";

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const model = "nano";
const text = { type: "text", text: question };
let uploaded;

before(async () => {
  uploaded = await client.files.create({ file: createReadStream(clip), purpose: "user_data" });
});

function messages() {
  const parts = [{ type: "video_url", video_url: { url: dataUrl } }, { type: "file", file: { file_id: uploaded.id } }];
  return parts.map((part) => [{ role: "user", content: [part, text] }]);
}

test("the model is listed", async () => {
  const names = [];
  for await (const found of client.models.list()) names.push(found.id);
  assert.deepEqual(names, [model]);
});

test("chat completions answer about the clip", async () => {
  for (const asked of messages()) {
    const reply = await client.chat.completions.create({ model, messages: asked });
    assert.equal(reply.choices[0].message.content, wanted);
    assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
  }
  const blind = await client.chat.completions.create({ model, messages: [{ role: "user", content: question }] });
  assert.notEqual(blind.choices[0].message.content, wanted);
});

test("chat completions stream", async () => {
  for (const asked of messages()) {
    let said = "";
    for await (const chunk of await client.chat.completions.create({ model, messages: asked, stream: true }))
      said += chunk.choices[0].delta.content ?? "";
    assert.equal(said, wanted);
    const stream = client.chat.completions.stream({ model, messages: asked });
    assert.equal((await stream.finalChatCompletion()).choices[0].message.content, wanted);
  }
});

test("responses answer, whole and streamed", async () => {
  const content = [{ type: "input_file", file_id: uploaded.id }, { type: "input_text", text: question }];
  const input = [{ role: "user", content }];
  assert.equal((await client.responses.create({ model, input })).output_text, wanted);
  let said = "";
  for await (const event of await client.responses.create({ model, input, stream: true }))
    if (event.type === "response.output_text.delta") said += event.delta;
  assert.equal(said, wanted);
});

const colors = ["blue", "green", "red", "white", "yellow"];
const schema = {
  type: "object", properties: { color: { enum: colors } }, required: ["color"], additionalProperties: false,
};

test("JSON is of the schema that was asked for", async () => {
  const asked = { model, messages: messages()[0] };
  const any = { ...asked, response_format: { type: "json_object" }, max_tokens: 12 };
  assert.equal((await client.chat.completions.create(any)).choices[0].message.content[0], "{");
  const format = { type: "json_schema", json_schema: { name: "color", schema, strict: true } };
  const reply = await client.chat.completions.parse({ ...asked, response_format: format });
  assert(colors.includes(JSON.parse(reply.choices[0].message.content).color));
});

test("what the server cannot do is refused by name", async () => {
  const format = { type: "json_schema", json_schema: { name: "color", schema: { type: "colour" } } };
  const asked = { model, messages: messages()[0], response_format: format };
  await assert.rejects(client.chat.completions.create(asked), (error) => {
    assert(error instanceof BadRequestError);
    assert.match(error.message, /the schema cannot be enforced: Invalid type: colour/);
    return true;
  });
});
