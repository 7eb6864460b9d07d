// The model, in a thread of its own, so that the page stays awake. Takes {id, task, ...}, answers {id, ...} or {id, error}.

import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { whiteNoise } from "./noise.js";

ort.env.wasm.numThreads = 1; // More need headers that a plain web server does not send.
ort.env.wasm.wasmPaths = { wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", self.location.href).href };

let config, encoder, decoder;

async function fetchBytes(name, onBytes) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} cannot be loaded (${answer.status})`);
  const parts = [];
  let size = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
    onBytes(value.length, Number(answer.headers.get("Content-Length")));
  }
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

async function load() {
  config = await (await fetch("config.json")).json();
  const graphs = ["encoder.onnx", "decoder.onnx"];
  for (const [number, name] of graphs.entries()) {
    let read = 0;
    const bytes = await fetchBytes(name, (length, total) => {
      read += length;
      if (total) postMessage({ progress: (number + read / total) / graphs.length });
    });
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    if (number) decoder = session;
    else encoder = session;
  }
  return { config };
}

async function encode({ wave }) {
  const start = performance.now();
  const { codes } = await encoder.run({ wave: new ort.Tensor("float32", wave, [1, 1, wave.length]) });
  const [, books, frames] = codes.dims;
  return { codes: Int32Array.from(codes.data, Number), books, frames, seconds: (performance.now() - start) / 1000 };
}

async function decode({ codes, books, frames }) {
  const start = performance.now();
  const inputs = { codes: new ort.Tensor("int64", BigInt64Array.from(codes, BigInt), [1, books, frames]) };
  if (config.noise) {
    const noise = whiteNoise(config.seed, frames + config.look_ahead_frames, config.hop_length);
    inputs.noise = new ort.Tensor("float32", noise, [1, noise.length]);
  }
  const { wave } = await decoder.run(inputs);
  return { wave: Float32Array.from(wave.data), seconds: (performance.now() - start) / 1000 };
}

const tasks = { load, encode, decode };

self.onmessage = async ({ data }) => {
  try {
    postMessage({ id: data.id, ...(await tasks[data.task](data)) });
  } catch (error) {
    postMessage({ id: data.id, error: String(error?.message ?? error) });
  }
};
