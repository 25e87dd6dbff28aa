// A stream of samples from one rate to another, by a sinc under a Kaiser window. Used in the audio thread.

const ZEROS = 16; // zero crossings of the sinc on each side
const ROLL_OFF = 0.95; // of the lower Nyquist frequency: where the pass band ends
const BETA = 9; // of the window: about 90 dB

// Sample k of what comes out belongs to the time k / to of what goes in; it comes out `delay` seconds later.
export class Resampler {
  constructor(from, to) {
    const common = divisor(from, to), cut = ROLL_OFF * Math.min(1, to / from);
    this.same = from === to;
    [this.up, this.down] = [to / common, from / common];
    this.reach = this.same ? 0 : Math.ceil(ZEROS / cut); // input samples on each side of an output sample
    this.delay = this.reach / from;
    const taps = (_, phase) => kernel(phase / this.up, this.reach, cut);
    this.taps = this.same ? [] : Array.from({ length: this.up }, taps); // for each phase
    this.reset();
  }

  // Forget what was before: silence.
  reset() {
    this.waiting = new Float32Array(this.reach); // input that is still needed
    this.phase = 0; // the next output sample is phase / up after the input sample waiting[reach]
  }

  // The next input samples -> as many output samples as they allow.
  process(input) {
    if (this.same) return input.slice();
    const held = joined(this.waiting, input), out = [], width = 2 * this.reach + 2;
    let first = 0, phase = this.phase;
    for (; first + width <= held.length; phase += this.down, first += Math.floor(phase / this.up), phase %= this.up) {
      const taps = this.taps[phase];
      let sum = 0;
      for (let i = 0; i < width; i++) sum += taps[i] * held[first + i];
      out.push(sum);
    }
    this.phase = phase;
    this.waiting = held.slice(first);
    return Float32Array.from(out);
  }
}

// One array after the other.
export function joined(first, second) {
  const both = new Float32Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

// Taps for the input samples -reach … reach + 1 around an output sample at `place`, 0 to 1.
function kernel(place, reach, cut) {
  return Float32Array.from({ length: 2 * reach + 2 }, (_, i) => {
    const t = (i - reach - place) * cut, inside = 1 - (t / ZEROS) ** 2;
    if (inside < 0) return 0;
    const window = bessel(BETA * Math.sqrt(inside)) / bessel(BETA);
    return cut * window * (t === 0 ? 1 : Math.sin(Math.PI * t) / (Math.PI * t));
  });
}

function bessel(x) {
  let sum = 1, term = 1;
  for (let k = 1; k < 40; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

function divisor(a, b) {
  return b ? divisor(b, a % b) : a;
}
