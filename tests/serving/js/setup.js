// What the tests of this folder share. Run one against a live server:
//   node openai.test.js URL CLIP QUESTION ANSWER
import { readFileSync } from "node:fs";

export const [url, clip, question, wanted] = process.argv.slice(2);
if (!wanted) throw new Error("arguments: URL CLIP QUESTION ANSWER");
export const baseURL = `${url}/v1`;
export const apiKey = "none";
export const bytes = readFileSync(clip);
export const dataUrl = `data:video/mp4;base64,${bytes.toString("base64")}`;
