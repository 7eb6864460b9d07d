// Sound as pictures and files.

import { rateOf, resample } from "./resample.js";

const WINDOW = 512;
const RANGE = 80; // Decibels below the loudest that a spectrogram shows.
const COLOURS = ["#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"];

// A recording as samples of one channel at a rate; the browser decodes it, at the rate that it has.
export async function readSound(bytes, rate) {
  const own = rateOf(bytes);
  const context = new OfflineAudioContext(1, 1, own);
  let sound;
  try {
    sound = await context.decodeAudioData(bytes);
  } catch {
    throw new Error("This file holds no sound that the browser can play.");
  }
  const wave = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    evenSteps(sound.getChannelData(channel)).forEach((sample, i) => (wave[i] += sample / sound.numberOfChannels));
  }
  return resample(wave, own, rate);
}

// Samples of 16 bits divided by 32768, as audiovq has them; Chromium divides those above zero by 32767.
function evenSteps(samples) {
  const uneven = samples.every((sample) => sample <= 0 || Math.abs(sample * 32767 - Math.round(sample * 32767)) < 0.01);
  return uneven ? samples.map((sample) => (sample > 0 ? Math.round(sample * 32767) / 32768 : sample)) : samples;
}

export function drawSpectrogram(canvas, wave) {
  const columns = fitCanvas(canvas);
  const rows = canvas.height;
  const levels = new Float32Array(columns * rows);
  const bins = WINDOW / 2;
  let loudest = 1e-6;
  for (let column = 0; column < columns; column++) {
    const centre = Math.round(((column + 0.5) / columns) * wave.length);
    const power = powers(wave, centre - bins);
    for (let row = 0; row < rows; row++) {
      const bin = Math.min(bins - 1, Math.floor(((rows - 1 - row) / rows) * bins));
      levels[row * columns + column] = power[bin];
      loudest = Math.max(loudest, power[bin]);
    }
  }
  const image = new ImageData(columns, rows);
  const palette = makePalette();
  levels.forEach((power, i) => {
    const level = 1 + (10 * Math.log10(power / loudest + 1e-12)) / RANGE;
    image.data.set(palette[Math.max(0, Math.min(255, Math.round(255 * level)))], 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// One row a codebook, one column a frame; codes that are not used are dim.
export function drawCodes(canvas, codes, sizes, frames, used) {
  const height = 18;
  canvas.width = frames;
  canvas.height = sizes.length * height;
  canvas.style.height = `${canvas.height}px`;
  const image = new ImageData(canvas.width, canvas.height);
  const palette = makePalette();
  for (let book = 0; book < sizes.length; book++) {
    for (let frame = 0; frame < frames; frame++) {
      // Neighbouring codes mean nothing: spread the colours.
      const colour = palette[Math.floor((((codes[book * frames + frame] + 1) * 0.618034) % 1) * 256)];
      for (let y = 0; y < height - 2; y++) {
        image.data.set([...colour.slice(0, 3), book < used ? 255 : 70], 4 * ((book * height + y) * frames + frame));
      }
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// 16-bit WAV.
export function wavBlob(wave, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * wave.length));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * wave.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * wave.length, true);
  wave.forEach((sample, i) => {
    view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true);
  });
  return new Blob([view], { type: "audio/wav" });
}

function fitCanvas(canvas) {
  const scale = Math.min(2, window.devicePixelRatio || 1);
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
  return canvas.width;
}

// Powers of a Hann window of samples, zeros outside of the signal.
function powers(wave, start) {
  const real = new Float32Array(WINDOW);
  const imaginary = new Float32Array(WINDOW);
  for (let i = 0; i < WINDOW; i++) {
    real[i] = (wave[start + i] ?? 0) * (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW));
  }
  transform(real, imaginary);
  return real.slice(0, WINDOW / 2).map((x, i) => x * x + imaginary[i] * imaginary[i]);
}

// Fourier transform in place (Cooley & Tukey, 1965).
function transform(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
    }
  }
  for (let length = 2; length <= size; length *= 2) {
    for (let k = 0; k < length / 2; k++) {
      const angle = (-2 * Math.PI * k) / length;
      const c = Math.cos(angle);
      const s = Math.sin(angle);
      for (let i = k; i < size; i += length) {
        const j = i + length / 2;
        const x = real[j] * c - imaginary[j] * s;
        const y = real[j] * s + imaginary[j] * c;
        real[j] = real[i] - x;
        imaginary[j] = imaginary[i] - y;
        real[i] += x;
        imaginary[i] += y;
      }
    }
  }
}

function makePalette() {
  const stops = COLOURS.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(place));
    return [...stops[low].map((x, i) => Math.round(x + (place - low) * (stops[low + 1][i] - x))), 255];
  });
}
