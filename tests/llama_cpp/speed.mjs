// Seconds that GGUF files take to read a prompt and to write the tokens after it, as JSON; in turn, the fastest of each:
//   node tests/llama_cpp/speed.mjs PROMPT_TOKENS NEW_TOKENS ROUNDS FILE [FILE …]
import { open } from "./opening.mjs";

const [read, written, rounds] = process.argv.slice(2, 5).map(Number);
const opened = [];
for (const file of process.argv.slice(5)) opened.push({ file, prefill: Infinity, decode: Infinity, ...(await open(file)) });
const prompt = Array.from({ length: read }, (_, i) => 100 + ((i * 37) % 1000));
for (let round = 0; round <= rounds; round++) {
  for (const one of opened) {
    await one.sequence.clearHistory();
    const start = performance.now();
    await one.sequence.evaluateWithoutGeneratingNewTokens(prompt);
    const middle = performance.now();
    let token = 100;
    for (let i = 0; i < written; i++) {
      await one.sequence.evaluateWithoutGeneratingNewTokens([token]);
      token = 100 + ((token * 37) % 1000);
    }
    if (round === 0) continue; // which warms up
    one.prefill = Math.min(one.prefill, (middle - start) / 1000);
    one.decode = Math.min(one.decode, (performance.now() - middle) / 1000);
  }
}
console.log(JSON.stringify(opened.map(({ file, prefill, decode }) => ({ file, prefill, decode }))));
for (const { llama } of opened) await llama.dispose();
