// Mean loss of each window of tokens in a GGUF file, in nats a token, as JSON; windows are a JSON list of lists:
//   node tests/llama_cpp/perplexity.mjs FILE WINDOWS.json
import { readFileSync } from "node:fs";
import { open } from "./opening.mjs";

const CHUNK = 32; // tokens whose logits are in memory at a time

const [file, windows] = process.argv.slice(2);
const { llama, sequence } = await open(file);
const losses = [];
for (const tokens of JSON.parse(readFileSync(windows, "utf8"))) {
  await sequence.clearHistory();
  let total = 0;
  for (let start = 0; start < tokens.length - 1; start += CHUNK) {
    const chunk = tokens.slice(start, Math.min(start + CHUNK, tokens.length - 1));
    const input = chunk.map((token) => [token, { generateNext: { logits: true } }]);
    const answers = await sequence.controlledEvaluate(input);
    answers.forEach(({ next }, i) => {
      let largest = -Infinity;
      for (const logit of next.logits.values()) if (logit > largest) largest = logit;
      let sum = 0;
      for (const logit of next.logits.values()) sum += Math.exp(logit - largest);
      total += largest + Math.log(sum) - next.logits.get(tokens[start + i + 1]);
    });
  }
  losses.push(total / (tokens.length - 1));
}
console.log(JSON.stringify(losses));
await llama.dispose();
