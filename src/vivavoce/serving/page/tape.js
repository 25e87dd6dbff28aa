// The button that records both sides, and the link to what was recorded.

import { RATE } from "./sound.js";
import { clock } from "./transcript.js";
import { fileName, find } from "./view.js";
import { Recording } from "./wav.js";

export class Tape {
  constructor() {
    this.recording = this.sound = null;
    find("record").onclick = () => (this.recording ? this.stop() : this.start());
  }

  // A conversation has begun, whose `sound` is recorded if that was asked for.
  load(sound) {
    this.sound = sound;
    if (this.recording) sound.record(this.recording);
    this.show();
  }

  // The conversation is over; fulfilled once its sound is no longer needed.
  async unload() {
    await this.stop();
    this.sound = null;
  }

  start() {
    this.recording = new Recording(RATE);
    this.sound?.record(this.recording);
    this.show();
  }

  async stop() {
    const { recording, sound } = this;
    this.recording = null;
    this.show();
    if (!recording) return;
    await sound?.stopRecording();
    if (recording.bytes) this.offer(recording);
  }

  offer(recording) {
    const link = find("download");
    URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(recording.blob());
    link.download = fileName("wav");
    link.textContent = `Download sound (${clock(recording.seconds)})`;
    link.hidden = false;
  }

  // Something more was recorded.
  more() {
    if (this.recording?.full) this.stop();
    this.show();
  }

  show() {
    find("record").setAttribute("aria-pressed", Boolean(this.recording));
    find("recording-chip").hidden = !this.recording || !this.sound;
    if (this.recording) find("recorded").textContent = clock(this.recording.seconds);
  }
}
