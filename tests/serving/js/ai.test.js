// The Vercel AI SDK, unmodified, with its providers for OpenAI and for compatible servers: generateText and streamText.
//
// Its chat providers take pictures, sound and PDF files only, so a clip goes as an uploaded file or is declared as a
// PDF file; the server goes by the first bytes. The responses provider passes a video on as what it is.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText } from "ai";
import { z } from "zod";
import { apiKey, baseURL, bytes, question, wanted } from "./setup.js";

const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({ name: "videopanda", baseURL, apiKey });
const pass = { openai: { passThroughUnsupportedFiles: true } };

async function upload() {
  const form = new FormData();
  form.append("purpose", "user_data");
  form.append("file", new Blob([bytes], { type: "video/mp4" }), "clip.mp4");
  return (await (await fetch(`${baseURL}/files`, { method: "POST", body: form })).json()).id;
}

const file = await upload();
const ways = [
  ["openai, chat, uploaded file", openai.chat("nano"), { data: file, mediaType: "application/pdf" }],
  ["openai, chat, bytes", openai.chat("nano"), { data: bytes, mediaType: "application/pdf" }],
  ["openai, responses, uploaded file", openai.responses("nano"), { data: file, mediaType: "application/pdf" }],
  ["openai, responses, bytes", openai.responses("nano"), { data: bytes, mediaType: "video/mp4" }],
  ["compatible, bytes", compatible("nano"), { data: bytes, mediaType: "application/pdf" }],
];

function request(model, part) {
  const content = [{ type: "file", ...part }, { type: "text", text: question }];
  return { model, messages: [{ role: "user", content }], providerOptions: pass, maxRetries: 0 };
}

for (const [name, model, part] of ways) {
  test(`${name}: whole and streamed`, async () => {
    const whole = await generateText(request(model, part));
    assert.equal(whole.text, wanted);
    assert(whole.usage.outputTokens > 0);
    let said = "";
    for await (const piece of streamText(request(model, part)).textStream) said += piece;
    assert.equal(said, wanted);
  });
}

test("a video declared as a picture is refused by the server, a video in chat by the client", async () => {
  const asImage = request(compatible("nano"), { data: bytes, mediaType: "image/png" });
  await assert.rejects(generateText(asImage), /image_url holds a video: send it as video_url/);
  const asVideo = request(openai.chat("nano"), { data: bytes, mediaType: "video/mp4" });
  await assert.rejects(generateText(asVideo), /file part media type video\/mp4/);
});

test("a conversation goes on; through responses with store: false, as nothing is stored", async () => {
  for (const [, model, part] of [ways[1], ways[3]]) {
    const asked = { ...request(model, part), providerOptions: { openai: { ...pass.openai, store: false } } };
    const { response } = await generateText(asked);
    const messages = [...asked.messages, ...response.messages, { role: "user", content: question }];
    assert((await generateText({ ...asked, messages })).text);
    if (part === ways[3][2])
      await assert.rejects(generateText({ ...asked, messages, providerOptions: pass }), /responses are not stored/);
  }
});

test("structured output is an object of its schema", async () => {
  const colors = ["blue", "green", "red", "white", "yellow"];
  const output = Output.object({ schema: z.object({ color: z.enum(colors) }) });
  const structured = createOpenAICompatible({ name: "videopanda", baseURL, apiKey, supportsStructuredOutputs: true });
  for (const [model, part] of [[ways[1][1], ways[1][2]], [ways[3][1], ways[3][2]], [structured("nano"), ways[4][2]]])
    assert(colors.includes((await generateText({ ...request(model, part), output })).output.color));
});
