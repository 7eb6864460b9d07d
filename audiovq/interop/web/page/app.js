// The page: what is dropped, chosen or recorded is encoded at once, and decoded at the rate that is chosen.
// `?wav=NAME` opens a file beside the page. `document.body.dataset.state` is loading, ready, working, done or error.

import { opusRate } from "./resample.js";
import { drawCodes, drawSpectrogram, readSound, wavBlob } from "./sound.js";

const LONGEST = 300; // Seconds that are encoded and decoded at once, in half a gigabyte of memory.
const USUAL_BOOKS = 3;
const OPUS_RATE = 48000; // At which browsers decode Opus.

const element = (id) => document.getElementById(id);
const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
const addresses = new Map(); // Of sounds and files that elements show, to be given back.
let config, speech, recorder;

worker.onmessage = ({ data }) => {
  if (data.progress !== undefined) return showProgress(data.progress);
  const { resolve, reject } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error) reject(new Error(data.error));
  else resolve(data);
};
worker.onerror = (event) => fail(new Error(event.message || "The model cannot be started in this browser."));

function ask(task, content = {}) {
  const id = crypto.getRandomValues(new Uint32Array(1))[0];
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, task, ...content });
  });
}

// --- what the page says ------------------------------------------------------------------------------------------

function show(state, text = "") {
  document.body.dataset.state = state;
  element("status").textContent = text;
  if (state === "working") element("progress").removeAttribute("value");
  const idle = state === "ready" || state === "done" || (state === "error" && config);
  for (const control of [element("choose"), element("record"), ...document.querySelectorAll("#rates input")]) {
    control.disabled = !idle;
  }
}

function showProgress(share) {
  element("progress").value = share;
}

function fail(error) {
  show("error", error.message);
}

function put(id, attribute, blob) {
  if (addresses.has(id)) URL.revokeObjectURL(addresses.get(id));
  addresses.set(id, URL.createObjectURL(blob));
  element(id).setAttribute(attribute, addresses.get(id));
}

// Another sound goes on where the one before was, so that rates can be compared.
function playOn(player, change) {
  const { currentTime, paused } = player;
  change();
  player.currentTime = currentTime;
  if (!paused) player.play();
}

const frameRate = () => config.sample_rate / config.hop_length;
const bitrate = (books) => frameRate() * config.codebook_sizes.slice(0, books).reduce((sum, size) => sum + Math.log2(size), 0);
const kilobits = (books) => String(Number((bitrate(books) / 1000).toPrecision(3)));

function describeModel() {
  const sizes = config.codebook_sizes;
  const codes = new Set(sizes).size === 1 ? `${sizes.length} × ${sizes[0]}` : sizes.join(" + ");
  element("facts").textContent =
    `${config.sample_rate / 1000} kHz, ${Number(frameRate().toPrecision(4))} frames a second, ${codes} codes, ` +
    `up to ${kilobits(sizes.length)} kbit/s`;
  element("model").textContent = `audiovq ${config.versions.audiovq}, weights ${config.weights_sha256.slice(0, 16)}`;
  const usual = Math.min(USUAL_BOOKS, sizes.length);
  sizes.forEach((_, i) => {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "rate", value: i + 1 });
    input.checked = i + 1 === usual;
    input.addEventListener("change", () => decode().catch(fail));
    label.append(input, Object.assign(document.createElement("span"), { textContent: kilobits(i + 1) }));
    element("rates").append(label);
  });
}

// --- speech ------------------------------------------------------------------------------------------------------

async function open(bytes, name) {
  const made = opusRate(bytes); // Before the bytes are given away.
  const wave = await readSound(bytes, config.sample_rate);
  const seconds = wave.length / config.sample_rate;
  if (!wave.length) throw new Error(`${name} is empty.`);
  if (seconds > LONGEST) throw new Error(`${name} is ${Math.round(seconds)} s long; at most ${LONGEST} s fit here.`);
  if (element("decoded-sound").src) element("decoded-sound").removeAttribute("src");
  show("working", `Encoding ${seconds.toFixed(1)} s of speech`);
  const { codes, books, frames, seconds: took } = await ask("encode", { wave });
  speech = { wave, codes, books, frames, seconds, name: name.replace(/\.[^.]*$/, ""), decoded: new Map() };
  element("result").hidden = false;
  element("original-facts").textContent = `0 to ${config.sample_rate / 2000} kHz, ${seconds.toFixed(2)} s`;
  element("original-note").textContent =
    made && made !== OPUS_RATE
      ? `Opus made of sound at ${made / 1000} kHz. Browsers decode it at ${OPUS_RATE / 1000} kHz, and audiovq at ` +
        `${made / 1000} kHz, so that it gets other codes here than in Python.`
      : "";
  element("codes-facts").textContent = `${frames} frames of ${books} codes, encoded in ${took.toFixed(2)} s`;
  put("original-sound", "src", wavBlob(wave, config.sample_rate));
  await decode();
}

async function decode() {
  const used = Number(document.querySelector("#rates input:checked").value);
  if (!speech.decoded.has(used)) {
    show("working", `Decoding ${kilobits(used)} kbit/s`);
    const codes = speech.codes.slice(0, used * speech.frames);
    const { wave, seconds } = await ask("decode", { codes, books: used, frames: speech.frames });
    speech.decoded.set(used, { wave: wave.slice(0, speech.wave.length), seconds });
  }
  const { wave, seconds } = speech.decoded.get(used);
  const kilobytes = (bitrate(used) * speech.seconds) / 8000;
  element("decoded-facts").textContent =
    `${used} of ${speech.books} codebooks, ${kilobytes.toFixed(1)} kB, decoded in ${seconds.toFixed(2)} s`;
  playOn(element("decoded-sound"), () => put("decoded-sound", "src", wavBlob(wave, config.sample_rate)));
  put("download-sound", "href", wavBlob(wave, config.sample_rate));
  put("download-codes", "href", new Blob([JSON.stringify(record(used))], { type: "application/json" }));
  element("download-sound").download = `${speech.name}-${kilobits(used)}k.wav`;
  element("download-codes").download = `${speech.name}.json`;
  draw();
  show("done", `${speech.name}, ${speech.seconds.toFixed(1)} s`);
}

function record(used) {
  const rows = Array.from({ length: used }, (_, book) =>
    Array.from(speech.codes.subarray(book * speech.frames, (book + 1) * speech.frames)),
  );
  return {
    sample_rate: config.sample_rate,
    hop_length: config.hop_length,
    num_samples: speech.wave.length,
    weights_sha256: config.weights_sha256,
    codes: rows,
  };
}

function draw() {
  if (!speech) return;
  const used = Number(document.querySelector("#rates input:checked").value);
  drawSpectrogram(element("original-picture"), speech.wave);
  drawCodes(element("codes-picture"), speech.codes, config.codebook_sizes, speech.frames, used);
  if (speech.decoded.has(used)) {
    drawSpectrogram(element("decoded-picture"), speech.decoded.get(used).wave);
  }
}

// --- where speech comes from -------------------------------------------------------------------------------------

async function openFile(file) {
  if (!file) return;
  show("working", `Reading ${file.name}`);
  await open(await file.arrayBuffer(), file.name);
}

async function openAddress(name) {
  show("working", `Reading ${name}`);
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} cannot be loaded (${answer.status}).`);
  await open(await answer.arrayBuffer(), name);
}

async function toggleRecording() {
  if (recorder) return recorder.stop();
  if (!navigator.mediaDevices) throw new Error("Browsers record for localhost and https alone.");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true }).catch(() => {
    throw new Error("There is no microphone that this page may use.");
  });
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = ({ data }) => parts.push(data);
  recorder.onstop = async () => {
    recorder = undefined;
    stream.getTracks().forEach((track) => track.stop());
    element("record").textContent = "Record";
    element("record").classList.remove("recording");
    await open(await new Blob(parts).arrayBuffer(), "recording").catch(fail);
  };
  recorder.start();
  element("record").textContent = "Stop";
  element("record").classList.add("recording");
  for (const control of [element("choose"), ...document.querySelectorAll("#rates input")]) control.disabled = true;
  element("status").textContent = "Recording";
}

function connect() {
  const drop = element("drop");
  const hover = (over) => (event) => {
    event.preventDefault();
    drop.classList.toggle("over", over);
  };
  addEventListener("dragover", hover(true));
  addEventListener("dragleave", hover(false));
  addEventListener("drop", (event) => {
    hover(false)(event);
    if (!element("choose").disabled) openFile(event.dataTransfer.files[0]).catch(fail);
  });
  element("choose").addEventListener("click", () => element("file").click());
  element("file").addEventListener("change", ({ target }) => {
    openFile(target.files[0]).catch(fail);
    target.value = "";
  });
  element("record").addEventListener("click", () => toggleRecording().catch(fail));
  addEventListener("resize", draw);
}

async function start() {
  show("loading", "Loading the model");
  connect();
  ({ config } = await ask("load"));
  describeModel();
  show("ready");
  const name = new URLSearchParams(location.search).get("wav");
  if (name) await openAddress(name);
}

start().catch(fail);
