// What has come from the server and has not been heard yet: as little as the network allows. Used in the audio thread.
//
// The first piece after a gap waits `margin` seconds, so that the next may be that much late. Whoever comes later than
// that makes a gap, which is counted, and a larger margin; while nothing comes late the margin shrinks. What waits
// beyond the margin for `PATIENCE` seconds is left out, in silence if there is some.

const LEAST = 0.03, FIRST = 0.04, MOST = 0.4; // seconds of margin
const PATIENCE = 2; // seconds for which too much must have waited
const CALM = 20; // seconds without a gap, after which the margin shrinks
const TOO_MUCH = 0.5; // seconds beyond the margin that are left out even from speech
const QUIET = 0.003; // RMS of what may be left out, about -50 dB

export class PlaybackBuffer {
  constructor(rate) {
    this.rate = rate;
    this.gaps = 0; // how often the buffer ran dry
    this.margin = FIRST;
    this.position = 0; // samples of the stream that are gone: taken, or left out
    this.leftOut = 0;
    this.flush();
  }

  // Forget what waits: the stream begins anew.
  flush() {
    this.position += this.waiting ?? 0;
    this.pieces = [];
    this.waiting = 0; // samples
    this.waited = 0; // samples of time since the first piece after a gap
    this.running = false;
    this.calm = 0;
    this.low = Infinity;
    this.since = 0;
  }

  // A piece of the stream, Float32Array.
  put(piece) {
    if (this.running) this.low = Math.min(this.low, this.waiting);
    this.pieces.push(piece);
    this.waiting += piece.length;
  }

  // Fill `out` with what is due; returns whether it is sound (else it is a gap, zeros).
  take(out) {
    if (!this.running) {
      out.fill(0);
      if (this.waiting) this.waited += out.length;
      if (!this.waiting || this.waited < this.margin * this.rate) return false;
      this.running = true;
    }
    this.relax(out.length);
    let at = 0;
    while (at < out.length && this.pieces.length) {
      const part = this.next(out.length - at);
      out.set(part, at);
      at += part.length;
    }
    if (at < out.length) {
      out.fill(0, at);
      this.running = false;
      this.gaps++;
      this.waited = 0;
      this.calm = 0;
      this.low = Infinity;
      this.since = 0;
      this.margin = Math.min(MOST, this.margin * 1.5);
    }
    return at > 0;
  }

  // At most so many samples of the first piece, which are gone then.
  next(most) {
    const [piece] = this.pieces, part = piece.subarray(0, most);
    if (part.length === piece.length) this.pieces.shift();
    else this.pieces[0] = piece.subarray(part.length);
    this.waiting -= part.length;
    this.position += part.length;
    return part;
  }

  // Bring the buffer back to its margin, little by little.
  relax(samples) {
    this.calm += samples;
    this.since += samples;
    if (this.calm > CALM * this.rate) {
      this.calm = 0;
      this.margin = Math.max(LEAST, this.margin * 0.8);
    }
    if (this.since < PATIENCE * this.rate) return;
    const excess = this.low === Infinity ? 0 : this.low - 1.5 * this.margin * this.rate;
    if (excess > 0) {
      const dropped = this.leaveOut(excess, excess > TOO_MUCH * this.rate);
      if (!dropped) return; // speech: look again with the next samples
    }
    this.since = 0;
    this.low = Infinity;
  }

  leaveOut(samples, anyhow) {
    let dropped = 0;
    const most = Math.round(this.rate / 100);
    while (dropped < samples && this.pieces.length) {
      if (!anyhow && level(this.pieces[0].subarray(0, most)) > QUIET) break;
      dropped += this.next(most).length;
    }
    this.leftOut += dropped;
    return dropped;
  }
}

// Root mean square.
export function level(samples) {
  let sum = 0;
  for (const value of samples) sum += value * value;
  return Math.sqrt(sum / Math.max(1, samples.length));
}
