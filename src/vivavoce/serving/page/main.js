// The page: one button, and what happens after it.

import { Gate } from "./gate.js";
import { Latency } from "./latency.js";
import { Live } from "./live.js";
import { Orb } from "./orb.js";
import { remembered } from "./settings.js";
import { devices, RATE, Sound, speakersCanBeChosen } from "./sound.js";
import { Tape } from "./tape.js";
import { Transcript } from "./transcript.js";
import { askForKey, colours, dismiss, element, figures, fileName, find, meter, notice, say } from "./view.js";
import { Watch } from "./watch.js";
import { duration, HINTS, obstacle, refusal, soundTrouble, waiting } from "./words.js";

const PLACE = new URL(".", document.baseURI).href;
const LABELS = { idle: "Talk", starting: "Cancel", queued: "Leave", talking: "Hang up", lost: "Hang up" };
const MICROPHONE = ["microphone", "echoCancellation", "noiseSuppression", "autoGainControl"];

class Page {
  constructor() {
    this.settings = remembered();
    this.transcript = new Transcript(find("turns"), { user: "You", model: "Model" });
    this.orb = new Orb(find("orb"));
    this.latency = new Latency();
    this.tape = new Tape();
    this.watch = new Watch(this.settings, () => this.change("echoCancellation", true));
    this.gate = new Gate(this.settings, (silenced) => this.silence(silenced));
    find("where").textContent = `What you say goes to ${location.host} and nowhere else.`;
    this.listen();
    this.settings.show();
    this.theme();
    this.listDevices();
    this.setState("idle");
    const trouble = obstacle();
    if (trouble) {
      find("talk").disabled = true;
      say("You cannot talk from here yet.");
      this.problem(trouble);
    }
    this.askServer().catch(() => {});
    document.body.dataset.ready = "yes";
  }

  listen() {
    find("talk").onclick = () => (this.state === "idle" ? this.begin() : this.hangUp());
    find("save-text").onclick = () => this.saveText();
    find("theme").onclick = () => {
      this.settings.set("theme", { auto: "light", light: "dark", dark: "auto" }[this.settings.theme]);
      this.theme();
    };
    find("open-settings").onclick = () => {
      this.listDevices();
      find("settings").showModal();
    };
    find("settings").onclick = (event) => {
      if (event.target === find("settings")) find("settings").close(); // beside it
    };
    this.settings.onchange = (name) => this.changed(name);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.orb.colours());
    navigator.mediaDevices?.addEventListener?.("devicechange", () => this.listDevices());
    window.addEventListener("pagehide", () => this.live?.close());
    document.addEventListener("visibilitychange", () => document.hidden || this.keepAwake());
  }

  // -- one conversation --

  async begin() {
    this.clear();
    this.setState("starting");
    say("Allow the microphone, if you are asked.");
    const attempt = (this.attempt = {});
    const sound = (this.sound = new Sound({
      piece: (piece) => this.heardYou(piece),
      played: (played) => this.heardModel(played),
      recorded: () => this.tape.more(),
      lost: () => this.microphoneGone(),
      paused: (paused) => this.paused(paused),
    }));
    sound.mute(this.gate.silenced);
    let trouble = null, model = "";
    try {
      await sound.open(this.settings.wishes());
      if (attempt === this.attempt) say("Connecting\u2026");
      model = (await this.askServer().catch(() => ({}))).model;
    } catch (error) {
      trouble = error.name === "NoWorklets" && !(await this.answering()) ? null : soundTrouble(error);
    }
    if (attempt !== this.attempt) return sound.close(); // hung up meanwhile
    if (!model) return this.fail(trouble ?? refusal({ code: "unreachable" }));
    this.listDevices();
    this.live = new Live(this.answers());
    this.live.mute(this.gate.silenced);
    this.live.connect({ place: PLACE, key: this.settings.key, session: { model, seed: this.settings.seed } });
  }

  // What to do when the server says something.
  answers() {
    return {
      queued: (place) => {
        this.setState("queued");
        say(waiting(place));
      },
      started: () => {
        this.setState("talking");
        this.tape.load(this.sound);
        this.orb.start([this.sound.ears, this.sound.voice]);
        this.keepAwake();
      },
      sound: (samples) => {
        this.received += samples.length;
        this.sound.play(samples);
      },
      words: (side, words) => {
        find("hint").hidden = true;
        this.transcript.add(side, words);
      },
      status: (server) => {
        this.server = server;
        this.latency.correct(server, this.received / RATE);
        this.watch.waits(server.input_waits_ms / 1000);
      },
      notice: (code, event) => this.told(code, event),
      lost: (left) => {
        if (this.state !== "lost") this.sound.flush();
        this.setState("lost");
        say("The connection is lost: trying to come back.", ` ${Math.ceil(left)} s left.`);
      },
      resumed: (gap) => {
        this.setState("talking");
        const lost = gap.toFixed(1);
        this.transcript.remark(`The connection was lost for ${lost} s.`);
        notice("resumed", "Connected again", `The conversation goes on. ${lost} s of it were lost.`, { seconds: 8 });
      },
      ended: (why) => this.ended(why),
    };
  }

  clear() {
    find("notices").replaceChildren();
    find("download").hidden = find("save-text").hidden = true;
    find("hint").hidden = false;
    this.transcript.clear();
    this.latency.clear();
    this.watch.clear();
    this.server = null;
    this.received = 0; // samples of the model's
    this.looked = 0;
  }

  hangUp() {
    this.attempt = null;
    if (this.live) this.live.close();
    else this.finish();
  }

  async ended(why) {
    const focused = document.activeElement === find("talk");
    this.finish();
    if (why.code === "unreachable" && (await this.answering())) why = { code: "blocked" };
    const trouble = refusal(why);
    if (trouble) this.problem(trouble);
    if (focused && trouble?.then !== "key") find("talk").focus();
  }

  finish() {
    const { sound } = this;
    this.attempt = this.live = this.sound = null;
    sound?.flush();
    this.tape.unload().then(() => sound?.close());
    this.orb.stop();
    this.awake?.release().catch(() => {});
    this.awake = null;
    this.watch.clear();
    dismiss("expiring", "resumed", "paused", "microphone");
    for (const side of ["user", "model"]) meter(side, 0);
    find("save-text").hidden = !this.transcript.turns.length;
    find("kept").hidden = true;
    this.setState("idle");
  }

  // It could not begin.
  fail(trouble) {
    this.finish();
    this.problem(trouble);
  }

  problem({ code, title, text, command, then }) {
    const actions = then === "again" ? [["Try again", () => this.begin()]] : [];
    const card = notice(code, title, text, { problem: true, actions });
    if (command) card.append(element("code", { textContent: command }));
    if (then === "key") {
      askForKey(card, (key) => {
        this.settings.set("key", key);
        this.begin();
      });
    }
  }

  // What the server is, and whether it is there.
  async askServer() {
    const health = await (await fetch(new URL("health", PLACE), { cache: "no-store" })).json();
    const name = health.model.split(/[\\/]/).filter(Boolean).pop() ?? health.model;
    find("model").textContent = find("model-side").textContent = this.transcript.names.model = name;
    find("model").title = `${health.conversations} of ${health.rows} places are taken`;
    find("model").hidden = false;
    if (HINTS[name]) find("hint").textContent = `${HINTS[name]} What you both say appears here.`;
    return health;
  }

  answering() {
    return this.askServer().then(() => true, () => false);
  }

  // What the server wants known.
  told(code, event) {
    const remarks = {
      recorded: "This server keeps a recording of this conversation.",
      no_input_transcript: "This model does not write down what you say.",
      no_output_transcript: "This model does not write down what it says.",
    };
    if (code === "session_expiring") {
      const left = `This conversation ends in ${duration(event.seconds ?? 30)}.`;
      notice("expiring", "Time is nearly up", `${left} You can start another one then.`);
    }
    if (code === "recorded") find("kept").hidden = false;
    if (!remarks[code]) return;
    find("hint").hidden = true;
    this.transcript.remark(remarks[code]);
  }

  // -- what is heard and said --

  heardYou({ samples, level, at }) {
    if (!this.sound) return; // hung up
    const talking = this.state === "talking";
    meter("user", level);
    this.watch.heard(level, at, talking && !this.gate.silenced);
    this.live?.say(samples);
    if (talking) this.latency.sent(this.live.sent / RATE, at);
  }

  heardModel(player) {
    if (!this.sound) return;
    this.latency.heard(player.position, player.at);
    this.watch.played(player.levels, player.at);
    meter("model", Math.max(...player.levels));
    const now = performance.now(), talking = this.state === "talking";
    if (now - this.looked < 500) return;
    this.looked = now;
    figures(talking ? this.latency.now(this.sound.delays(), player.waiting) : null, player, this.server);
    if (talking) this.watch.look();
  }

  silence(silenced) {
    this.sound?.mute(silenced);
    this.live?.mute(silenced);
    if (this.state === "talking") say(this.gate.words());
  }

  saveText() {
    const blob = new Blob([this.transcript.text()], { type: "text/plain" });
    const link = element("a", { href: URL.createObjectURL(blob), download: fileName("txt") });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // -- devices and settings --

  async listDevices() {
    const { microphones, speakers } = await devices().catch(() => ({ microphones: [], speakers: [] }));
    this.settings.choices("microphone", microphones, "Microphone");
    this.settings.choices("speaker", speakers, "Loudspeaker");
    const can = Boolean(window.AudioContext) && speakersCanBeChosen();
    find("speaker").disabled = !can;
    find("speaker-note").hidden = can;
  }

  change(name, value) {
    this.settings.set(name, value);
    this.changed(name);
  }

  changed(name) {
    if (name === "speaker") this.sound?.setSpeaker(this.settings.speaker);
    if (name === "announce") find("log").setAttribute("aria-live", this.settings.announce ? "polite" : "off");
    if (MICROPHONE.includes(name)) {
      this.watch.clear();
      this.listenTo(this.settings.wishes());
    }
  }

  listenTo(wishes) {
    this.sound?.setMicrophone(wishes).catch((error) => this.problem(soundTrouble(error)));
  }

  microphoneGone() {
    const text = "It was unplugged or switched off. The system\u2019s own is used now.";
    notice("microphone", "The microphone is gone", text, { seconds: 12 });
    this.listenTo({ ...this.settings.wishes(), microphone: "" });
  }

  paused(paused) {
    if (!paused || this.state === "idle") return dismiss("paused");
    const actions = [["Go on", () => this.sound?.resume()]];
    notice("paused", "The sound was paused", "A call or another program may have taken it.", { actions });
  }

  // A phone should not fall asleep while one talks.
  async keepAwake() {
    if (this.state !== "talking" || !navigator.wakeLock) return;
    this.awake = await navigator.wakeLock.request("screen").catch(() => null);
  }

  theme() {
    colours(this.settings.theme);
    this.orb.colours();
  }

  setState(state) {
    const before = this.state;
    this.state = document.body.dataset.state = state;
    find("talk").firstElementChild.textContent = LABELS[state];
    if (state === "idle") {
      say("Press Talk and speak.");
      find("latency").textContent = "\u2013";
      find("latency").classList.remove("late");
      this.gate.muted = false;
    }
    if (state !== before) this.gate.open(state === "talking");
  }
}

export const page = new Page();
