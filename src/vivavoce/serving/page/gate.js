// Whether one is heard: the mute button, or push to talk with a button and the space bar.

import { find } from "./view.js";

export class Gate {
  // `settings.pushToTalk`; `changed(silenced)` when one is heard from now on, or no more.
  constructor(settings, changed) {
    Object.assign(this, { settings, changed });
    this.muted = this.held = this.talking = false;
    find("mute").onclick = () => this.set({ muted: !this.muted });
    find("push").onclick = () => {
      settings.set("pushToTalk", !settings.pushToTalk);
      this.set({ held: false });
      this.focus();
    };
    this.button();
    this.keys();
    this.show();
  }

  get silenced() {
    return this.settings.pushToTalk ? !this.held : this.muted;
  }

  // While one talks.
  open(talking) {
    this.set(talking ? { talking } : { talking, held: false });
    if (talking) this.focus();
  }

  set(state) {
    Object.assign(this, state);
    this.show();
    this.changed(this.silenced);
  }

  hold(held) {
    if (this.settings.pushToTalk && held !== this.held && (this.talking || !held)) this.set({ held });
  }

  // The space bar should not press what was clicked last.
  focus() {
    if (this.talking && this.settings.pushToTalk && !find("settings").open) find("hold").focus({ preventScroll: true });
  }

  show() {
    const push = this.settings.pushToTalk, muted = this.muted && !push;
    find("push").setAttribute("aria-pressed", push);
    find("hold-area").hidden = !push;
    find("hold").disabled = !this.talking;
    find("hold").classList.toggle("held", this.held);
    find("mute").disabled = push || !this.talking;
    find("mute").setAttribute("aria-pressed", muted);
    find("mute").lastElementChild.textContent = muted ? "Muted" : "Mute";
  }

  words() {
    const finger = matchMedia("(hover: none) and (pointer: coarse)").matches;
    if (!this.settings.pushToTalk) return this.muted ? "Muted: the model hears silence." : "Speak whenever you like.";
    return this.held ? "You are heard." : `Hold the button ${finger ? "" : "or the space bar "}while you speak.`;
  }

  button() {
    const button = find("hold");
    button.onpointerdown = (event) => {
      button.setPointerCapture(event.pointerId);
      this.hold(true);
    };
    button.onpointerup = button.onpointercancel = button.onlostpointercapture = () => this.hold(false);
    button.oncontextmenu = (event) => event.preventDefault();
    document.addEventListener("click", (event) => event.detail && this.focus()); // a mouse or a finger, no key
  }

  keys() {
    const button = find("hold");
    const taken = (target) => target !== button && target.closest?.("button, input, select, textarea, summary, a");
    const meant = ({ code, target }) =>
      (code === "Space" && !find("settings").open && !taken(target)) || (code === "Enter" && target === button);
    document.addEventListener("keydown", (event) => {
      if (!this.settings.pushToTalk || !this.talking || !meant(event)) return;
      event.preventDefault();
      if (!event.repeat) this.hold(true);
    });
    document.addEventListener("keyup", ({ code }) => ["Space", "Enter"].includes(code) && this.hold(false));
    window.addEventListener("blur", () => this.hold(false));
  }
}
