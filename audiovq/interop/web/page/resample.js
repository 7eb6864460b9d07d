// Recordings at the model's rate, filtered as audiovq filters them, so that they get the same codes.

const WIDTH = 6; // Zero crossings on each side of the filter (a sinc in a Hann window), torchaudio's default.
const ROLLOFF = 0.99;
const USUAL_RATE = 48000;

// The rate of a WAV, FLAC, Vorbis or MP3 file; for others one that leaves what speech has as it is.
export function rateOf(bytes) {
  const view = new DataView(bytes);
  const text = (at, length) => String.fromCharCode(...new Uint8Array(bytes.slice(at, at + length)));
  let rate = USUAL_RATE;
  if (text(0, 4) === "RIFF") {
    let at = 12; // Of the first chunk; each has an even number of bytes.
    while (at + 16 <= bytes.byteLength && text(at, 4) !== "fmt ") at += 8 + 2 * Math.ceil(view.getUint32(at + 4, true) / 2);
    if (at + 16 <= bytes.byteLength) rate = view.getUint32(at + 12, true);
  } else if (text(0, 4) === "fLaC" && bytes.byteLength > 22) {
    rate = view.getUint32(18) >>> 12;
  } else if (text(0, 4) === "OggS" && bytes.byteLength > 64) {
    const packet = 27 + view.getUint8(26);
    if (text(packet, 7) === "\x01vorbis") rate = view.getUint32(packet + 12, true);
  } else {
    rate = rateOfFrame(view) ?? USUAL_RATE;
  }
  return rate >= 3000 && rate <= 384000 ? rate : USUAL_RATE;
}

// The rate of the sound that an Ogg Opus file was made of, at which audiovq decodes it; a browser does it at 48 kHz.
export function opusRate(bytes) {
  const view = new DataView(bytes);
  const packet = bytes.byteLength > 64 ? 27 + view.getUint8(26) : 0;
  const head = packet ? String.fromCharCode(...new Uint8Array(bytes, packet, 8)) : "";
  return head === "OpusHead" ? view.getUint32(packet + 12, true) : undefined;
}

// The rate of MPEG audio, by the header of its first frame, after tags.
function rateOfFrame(view) {
  let at = 0;
  while (at + 10 < view.byteLength && view.getUint32(at) >>> 8 === 0x494433) {
    at += 10 + [6, 7, 8, 9].reduce((size, place) => (size << 7) | view.getUint8(at + place), 0);
  }
  if (at + 4 > view.byteLength) return undefined;
  const head = view.getUint32(at);
  const [version, layer, coarse] = [(head >>> 19) & 3, (head >>> 17) & 3, (head >>> 10) & 3];
  if (head >>> 21 !== 0x7ff || version === 1 || !layer || coarse === 3) return undefined;
  return [44100, 48000, 32000][coarse] / { 3: 1, 2: 2, 0: 4 }[version];
}

export function resample(wave, from, to) {
  let [divisor, rest] = [from, to];
  while (rest) [divisor, rest] = [rest, divisor % rest];
  const [source, target] = [from / divisor, to / divisor];
  if (source === target) return wave;
  const base = Math.min(source, target) * ROLLOFF;
  const reach = (WIDTH * source) / base; // Samples that a filter sees on each side.
  const filters = Array.from({ length: target }, (_, phase) => {
    const centre = (phase * source) / target;
    const first = Math.ceil(centre - reach);
    const weights = Float32Array.from({ length: Math.floor(centre + reach) - first + 1 }, (_, tap) => {
      const time = ((first + tap - centre) / source) * base;
      const sinc = time ? Math.sin(Math.PI * time) / (Math.PI * time) : 1;
      return (sinc * Math.cos((Math.PI * time) / WIDTH / 2) ** 2 * base) / source;
    });
    return { first, weights };
  });
  return Float32Array.from({ length: Math.ceil((wave.length * target) / source) }, (_, n) => {
    const { first, weights } = filters[n % target];
    const start = Math.floor(n / target) * source + first;
    let sum = 0;
    for (let tap = Math.max(0, -start); tap < weights.length && start + tap < wave.length; tap++) {
      sum += weights[tap] * wave[start + tap];
    }
    return sum;
  });
}
