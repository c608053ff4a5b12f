// What a GGUF file continues a prompt with, the likeliest token each time:
//   node tests/llama_cpp/generate.mjs FILE "prompt" [TOKENS]
import { open, tokenize } from "./opening.mjs";

const [file, prompt, count = "32"] = process.argv.slice(2);
const { llama, model, sequence } = await open(file);
const tokens = tokenize(model, prompt);
const written = [];
for await (const token of sequence.evaluate(tokens, { temperature: 0 })) {
  if (model.isEogToken(token) || written.length >= Number(count)) break;
  written.push(token);
}
console.log(prompt + model.detokenize(written, false, tokens));
await llama.dispose();
