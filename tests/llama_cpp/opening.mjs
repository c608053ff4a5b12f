// A GGUF file in llama.cpp on the CPU (one thread: more wait for each other where cores are busy), from the prebuilt
// binary: nothing is downloaded or compiled.
process.env.NODE_LLAMA_CPP_SKIP_DOWNLOAD = "true";
const { getLlama, LlamaLogLevel } = await import("node-llama-cpp");

// Its default is f16, which costs three digits.
const F32_CACHE = { experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32" };

export async function open(file) {
  const llama = await getLlama({ gpu: false, maxThreads: 1, build: "never", logLevel: LlamaLogLevel.error });
  const model = await llama.loadModel({ modelPath: file, gpuLayers: 0 });
  const context = await model.createContext({ contextSize: 512, flashAttention: false, threads: 1, ...F32_CACHE });
  return { llama, model, sequence: context.getSequence() };
}

export function tokenize(model, text) {
  const tokens = model.tokenize(text);
  return model.tokens.shouldPrependBosToken ? [model.tokens.bos, ...tokens] : tokens;
}
