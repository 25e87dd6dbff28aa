// What one should be told about while one talks: an echo, a microphone that gives nothing, a server that is behind.

import { EchoWatch } from "./echo.js";
import { dismiss, notice } from "./view.js";

const NOTHING = 1e-5, SILENCE = 8000; // level and ms of a microphone that gives nothing
const LATE = 1, TIMES = 3; // seconds of input that wait at the server, so many seconds on end

export class Watch {
  // `settings.echoCancellation`, and what to do to switch it on.
  constructor(settings, switchOn) {
    Object.assign(this, { settings, switchOn });
    this.clear();
  }

  clear() {
    this.echo = new EchoWatch();
    this.toldOfEcho = false;
    this.late = 0;
    this.lastSound = performance.now();
    dismiss("echo", "silent", "behind");
  }

  // The microphone's level; `expected`: whether one talks and is not muted.
  heard(level, at, expected) {
    this.echo.addHeard(level, at);
    const now = performance.now();
    if (level > NOTHING || !expected) {
      this.lastSound = now;
      dismiss("silent");
    } else if (now - this.lastSound > SILENCE) {
      this.lastSound = Infinity; // said once
      const text = "It may be switched off, or another one may be meant: choose it in the settings.";
      notice("silent", "Nothing comes from the microphone", text);
    }
  }

  played(levels, at) {
    this.echo.addPlayed(levels, at);
  }

  // Now and then: does the model hear itself?
  look() {
    if (this.toldOfEcho || !this.echo.sure()) return;
    this.toldOfEcho = true;
    const off = !this.settings.echoCancellation, actions = [["All right", () => dismiss("echo")]];
    if (off) actions.unshift(["Switch it on", () => this.switchOn()]);
    const remedy = off ? "Switch echo cancellation on, or use headphones." : "Use headphones, or a lower volume.";
    const text = `What it says comes back through your microphone. ${remedy}`;
    notice("echo", "The model seems to hear itself", text, { actions });
  }

  // So many seconds of what one said wait at the server.
  waits(seconds) {
    this.late = seconds > LATE ? this.late + 1 : 0;
    if (!this.late) dismiss("behind");
    else if (this.late === TIMES) {
      notice("behind", "The server is behind", "It has more to do than it can: answers come late.");
    }
  }
}
