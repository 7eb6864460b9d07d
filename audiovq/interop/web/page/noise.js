// White noise as PyTorch draws it on a CPU: the Mersenne Twister (Matsumoto & Nishimura, 1998), and blocks of 16 normal
// numbers of as many uniform ones (Box & Muller, 1958). So decoding here sounds as it does there.

const BLOCK = 16;

class Twister {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const last = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, last) + i;
    }
    this.next = 624;
  }

  uniform() {
    if (this.next === 624) this.turn();
    let bits = this.state[this.next++];
    bits ^= bits >>> 11;
    bits ^= (bits << 7) & 0x9d2c5680;
    bits ^= (bits << 15) & 0xefc60000;
    bits ^= bits >>> 18;
    return (bits & 0xffffff) / 0x1000000;
  }

  turn() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const bits = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }
}

function makeNormal(block, output, start) {
  for (let i = 0; i < BLOCK / 2; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - block[i]));
    const angle = 2 * Math.PI * block[i + BLOCK / 2];
    output[start + i] = radius * Math.cos(angle);
    output[start + i + BLOCK / 2] = radius * Math.sin(angle);
  }
}

export function whiteNoise(seed, frames, length) {
  const twister = new Twister(seed);
  const noise = new Float32Array(frames * length);
  const draw = (count) => Array.from({ length: count }, () => twister.uniform());
  for (let frame = 0; frame < frames; frame++) {
    const numbers = draw(length);
    for (let at = 0; at + BLOCK <= length; at += BLOCK) {
      makeNormal(numbers.slice(at, at + BLOCK), noise, frame * length + at);
    }
    // Of a length that is no whole number of blocks, the last one is drawn anew.
    if (length % BLOCK) makeNormal(draw(BLOCK), noise, (frame + 1) * length - BLOCK);
  }
  return noise;
}
