// What runs in the audio thread: the microphone to the server's rate, the server's sound to the device's, and a
// recorder of both. `sampleRate`, `currentTime` are the device's.

import { PlaybackBuffer, level } from "./playback_buffer.js";
import { Resampler, joined } from "./resampler.js";

const BIN = 0.02; // seconds for which one level is reported

// Microphone -> pieces of 20 ms, 16-bit, at `rate`: {samples, level, at}; `at`: time of the piece's end.
class Capture extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.resampler = new Resampler(sampleRate, rate);
    this.piece = new Float32Array(Math.round(rate * BIN));
    this.filled = 0;
    this.rate = rate;
  }

  process([[channel]]) {
    const samples = this.resampler.process(channel ?? new Float32Array(128));
    for (let from = 0; from < samples.length; ) {
      const count = Math.min(samples.length - from, this.piece.length - this.filled);
      this.piece.set(samples.subarray(from, from + count), this.filled);
      this.filled += count;
      from += count;
      if (this.filled === this.piece.length) {
        const left = (samples.length - from) / this.rate;
        this.post(currentTime + 128 / sampleRate - this.resampler.delay - left);
      }
    }
    return true;
  }

  post(at) {
    const samples = whole(this.piece);
    this.port.postMessage({ samples, level: level(this.piece), at }, [samples.buffer]);
    this.filled = 0;
  }
}

// Pieces of the server's sound -> loudspeaker. Takes {samples} (Int16Array at `rate`), {flush: true}; reports
// {position, at, waiting, margin, gaps, levels} each 100 ms: seconds of the stream that have gone to the device at
// time `at`, and the levels of the bins of 20 ms before it.
class Playback extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.rate = rate;
    this.buffer = new PlaybackBuffer(rate);
    this.resampler = new Resampler(rate, sampleRate);
    this.block = new Float32Array(Math.round(rate / 100));
    this.ready = new Float32Array(0); // at the device's rate
    this.bin = [0, 0]; // sum of squares, count
    this.levels = [];
    this.port.onmessage = ({ data }) => {
      if (data.flush) this.buffer.flush();
      else this.buffer.put(Float32Array.from(data.samples, (value) => value / 32768));
    };
  }

  process(inputs, [[out]]) {
    while (this.ready.length < out.length) {
      this.buffer.take(this.block);
      this.ready = joined(this.ready, this.resampler.process(this.block));
    }
    out.set(this.ready.subarray(0, out.length));
    this.ready = this.ready.slice(out.length);
    for (const value of out) {
      this.bin[0] += value * value;
      if (++this.bin[1] >= BIN * sampleRate) this.binDone();
    }
    return true;
  }

  binDone() {
    this.levels.push(Math.sqrt(this.bin[0] / this.bin[1]));
    this.bin = [0, 0];
    if (this.levels.length < 5) return;
    const { position, waiting, margin, gaps, running } = this.buffer;
    const ahead = running ? this.ready.length / sampleRate + this.resampler.delay : 0;
    this.port.postMessage({
      position: position / this.rate - ahead, at: currentTime + 128 / sampleRate, waiting: waiting / this.rate,
      margin, gaps, levels: this.levels,
    });
    this.levels = [];
  }
}

// Microphone (input 0) and what is played (input 1) -> {samples}: pairs of 16-bit samples at `rate`, while {on: true}.
class Recorder extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.make = () => [0, 1].map(() => new Resampler(sampleRate, rate));
    this.on = false;
    this.port.onmessage = ({ data }) => {
      if (data.on) this.sides = this.make();
      else if (this.on) this.post(true);
      this.on = data.on;
      this.pairs = [];
      this.count = 0;
    };
    this.rate = rate;
  }

  process(inputs) {
    if (!this.on) return true;
    const [left, right] = this.sides.map((side, i) => side.process(inputs[i][0] ?? new Float32Array(128)));
    const pairs = new Float32Array(2 * left.length);
    for (let i = 0; i < left.length; i++) {
      pairs[2 * i] = left[i];
      pairs[2 * i + 1] = right[i];
    }
    this.pairs.push(whole(pairs));
    this.count += left.length;
    if (this.count >= this.rate / 4) this.post(false);
    return true;
  }

  post(last) {
    const samples = new Int16Array(2 * this.count);
    let at = 0;
    for (const pairs of this.pairs) {
      samples.set(pairs, at);
      at += pairs.length;
    }
    this.port.postMessage({ samples, last }, [samples.buffer]);
    this.pairs = [];
    this.count = 0;
  }
}

function whole(samples) {
  return Int16Array.from(samples, (value) => Math.max(-32768, Math.min(32767, Math.round(value * 32768))));
}

registerProcessor("capture", Capture);
registerProcessor("playback", Playback);
registerProcessor("recorder", Recorder);
