// Tokens of a prompt and the logits past its last one, as JSON; several prompts of one file:
//   node tests/llama_cpp/logits.mjs FILE "prompt" ["prompt" …]
import { open, tokenize } from "./opening.mjs";

const [file, ...prompts] = process.argv.slice(2);
const { llama, model, sequence } = await open(file);
const answers = [];
for (const prompt of prompts) {
  await sequence.clearHistory();
  const tokens = tokenize(model, prompt);
  const input = tokens.map((token, i) => (i + 1 < tokens.length ? token : [token, { generateNext: { logits: true } }]));
  const { next } = (await sequence.controlledEvaluate(input)).at(-1);
  const logits = new Array(next.logits.size);
  for (const [token, logit] of next.logits) logits[token] = logit;
  answers.push({ tokens, logits });
}
console.log(JSON.stringify(answers));
await llama.dispose();
