// How long it takes from a sound at the microphone to the model's answer to it at the ear.
//
// The model answers frame by frame: second t of what it says is its answer to second t of what it heard. So what was
// captured minus what was played, both in seconds of these streams at the same moment, is the way through network,
// model and buffers; the devices' own delays come on top. What either side left out or filled in is counted in.

import { RATE } from "./sound.js";

export class Latency {
  constructor() {
    this.clear();
  }

  clear() {
    this.captured = this.played = null; // [seconds of the stream, time of the audio thread]
    this.unheard = this.unsaid = 0;
  }

  // So many seconds were sent until `at`.
  sent(seconds, at) {
    this.captured = [seconds, at];
  }

  // So many seconds of the server's stream had gone to the loudspeaker at `at`.
  heard(seconds, at) {
    this.played = [seconds, at];
  }

  // The server's own count: seconds of silence that it heard though nothing was sent, less what it left out; and those
  // of what it said that it did not send, for so many seconds of it have come.
  correct({ silent, dropped, frame_ms, said_ms }, received) {
    this.unheard = (silent * frame_ms) / 1000 - dropped / RATE;
    this.unsaid = said_ms / 1000 - received;
  }

  // {total, way, microphone, speaker, buffer} in seconds; null where it is not known yet.
  now({ microphone, speaker }, waiting) {
    if (!this.captured || !this.played || this.played[0] <= 0) return null;
    const [captured, at] = this.captured, [played, then] = this.played;
    const way = captured + this.unheard - (played + this.unsaid) + (then - at);
    if (!(way > -0.5 && way < 60)) return null;
    const inside = Math.max(0, way);
    const total = inside + microphone + speaker;
    return { total, way: Math.max(0, inside - waiting), buffer: waiting, microphone, speaker };
  }
}
