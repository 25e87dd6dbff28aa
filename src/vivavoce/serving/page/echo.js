// Does the model hear itself? The microphone's level follows the loudspeaker's, a moment later.

const BIN = 0.02; // seconds of one level
const WINDOW = 200; // bins that are compared: 4 s
const FURTHEST = 25; // bins that an echo may be late: 0.5 s
const ENOUGH = 60; // bins of sound in the window, without which there is nothing to compare
const SURE = 0.7, CLEAR = 0.35; // from which on it counts: correlation, and how far above that at other delays
const AUDIBLE = 0.002, FLOOR = 0.0005; // RMS: of sound that is played, and of what counts as nothing

export class EchoWatch {
  constructor() {
    this.clear();
  }

  clear() {
    this.played = new Map(); // number of the bin -> level
    this.heard = new Map();
  }

  // Levels of bins of 20 ms, the last of which ended at time `at` (seconds of the audio thread's clock).
  addPlayed(levels, at) {
    this.add(this.played, levels, at);
  }

  addHeard(level, at) {
    this.add(this.heard, [level], at);
  }

  add(bins, levels, at) {
    const last = Math.round(at / BIN);
    levels.forEach((level, i) => bins.set(last - levels.length + 1 + i, level));
    for (const bin of bins.keys()) {
      if (bin >= last - 2 * WINDOW) break;
      bins.delete(bin);
    }
  }

  // How much the microphone follows the loudspeaker: {best: correlation at the best delay, apart: how far that is above
  // the middle of all delays}. Two voices that begin together are alike at every delay, an echo at its own. Zeros where
  // too little was played, or not enough has been heard.
  likeness() {
    const nothing = { best: 0, apart: 0 };
    if (this.heard.size < WINDOW || this.played.size < WINDOW + FURTHEST) return nothing;
    const last = Math.min(Math.max(...this.heard.keys()), Math.max(...this.played.keys()));
    const bins = Array.from({ length: WINDOW }, (_, i) => last - i);
    const level = (map, bin) => Math.log(Math.max(FLOOR, map.get(bin) ?? 0));
    if (bins.filter((bin) => (this.played.get(bin) ?? 0) > AUDIBLE).length < ENOUGH) return nothing;
    const heard = bins.map((bin) => level(this.heard, bin));
    const late = Array.from({ length: FURTHEST + 1 }, (_, delay) =>
      correlation(heard, bins.map((bin) => level(this.played, bin - delay))),
    ).sort((a, b) => a - b);
    const best = late[FURTHEST];
    return { best, apart: best - late[FURTHEST >> 1] };
  }

  // Whether one should be told.
  sure() {
    const { best, apart } = this.likeness();
    return best > SURE && apart > CLEAR;
  }
}

// Pearson's; 0 where one of the two does not change.
function correlation(first, second) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [a, b] = [mean(first), mean(second)];
  let both = 0, left = 0, right = 0;
  for (let i = 0; i < first.length; i++) {
    both += (first[i] - a) * (second[i] - b);
    left += (first[i] - a) ** 2;
    right += (second[i] - b) ** 2;
  }
  return left * right > 1e-9 ? both / Math.sqrt(left * right) : 0;
}
