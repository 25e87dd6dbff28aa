// One conversation with the server in OpenAI's Live dialect: a WebSocket that comes back when it was lost.

import { RATE } from "./sound.js";

const SILENT = 6000; // ms without a word from the server, after which the connection counts as lost
const GRACE = 30; // seconds for which a server keeps a conversation whose connection is lost, if it does not say
const UNSENT = 96000; // bytes that may wait to be sent, about 1.5 s; what comes then is left out
const FINAL = [1008, 1009, 1011, 1012, 1013]; // close codes with which the server means it

export class Live {
  // Callbacks: queued({position, eta_seconds}), started(session), sound(Int16Array), words(side, {delta, start_ms,
  // end_ms}), status(figures), notice(code, event), lost(seconds left), resumed(seconds of the gap), ended({code,
  // message}): the code is the server's, or "close_requested", "unreachable", "connection_lost", "key_unsendable".
  constructor(callbacks) {
    this.on = callbacks;
    this.state = "new"; // connecting, talking, lost, over
    this.sent = 0; // samples
    this.grace = GRACE;
    this.silenced = this.told = false;
  }

  // `place`: address of the server, ending in "/"; `session`: what goes into session.start besides the sound's format.
  connect({ place, key, session }) {
    Object.assign(this, { place, key, session });
    this.state = "connecting";
    this.open("");
  }

  open(token) {
    const address = new URL("v1/live/sessions", this.place);
    address.protocol = address.protocol.replace("http", "ws");
    address.searchParams.set("status", "1");
    if (token) address.searchParams.set("resume", token);
    let socket;
    try {
      socket = new WebSocket(address, this.key ? ["realtime", `openai-insecure-api-key.${this.key}`] : ["realtime"]);
    } catch {
      return this.end("key_unsendable");
    }
    this.socket = socket;
    this.refusal = null;
    this.opened = false;
    this.listenFor();
    socket.onopen = () => {
      this.opened = true;
      const sound = { format: { type: "audio/pcm", rate: RATE } };
      if (!token) this.tell({ type: "session.start", session: { ...this.session, audio: sound } });
    };
    socket.onmessage = ({ data }) => {
      this.listenFor();
      this.hear(JSON.parse(data));
    };
    socket.onclose = ({ code, reason }) => this.closed(code, reason);
  }

  // What the server says.
  hear(event) {
    switch (event.type) {
      case "session.output_audio.delta":
        return this.on.sound(samplesOf(event.delta));
      case "session.input_transcript.delta":
        return this.on.words("user", event);
      case "session.output_transcript.delta":
        return this.on.words("model", event);
      case "vivavoce.status":
        return this.on.status(event);
      case "session.started":
        this.token = event.session.resume_token;
        this.grace = event.session.resume_seconds ?? GRACE;
        if (this.state !== "connecting") return;
        this.state = "talking";
        this.listenFor();
        this.mute(this.silenced);
        return this.on.started(event.session);
      case "info":
        return this.note(event);
      case "error":
        this.refusal = event.error;
        return this.state === "talking" ? this.on.notice(event.error.code, event.error) : undefined;
      case "session.closed":
        this.farewell = true;
        if (event.reason !== "connection_lost" && this.refusal?.code !== "idle") this.refusal = { code: event.reason };
        this.refusal ??= { code: event.reason };
    }
  }

  note(event) {
    if (event.code === "queue") return this.on.queued(event);
    if (event.code === "idle_timeout") this.refusal = { code: "idle", message: event.message };
    if (event.code !== "resumed") return this.on.notice(event.code, event);
    this.state = "talking";
    clearTimeout(this.retry);
    window.removeEventListener("online", this.online);
    this.mute(this.silenced);
    this.on.resumed((event.gap_ms ?? 0) / 1000);
  }

  closed(code, reason) {
    clearTimeout(this.silence);
    if (this.state === "over") return;
    if (this.farewell) return this.end(this.refusal.code, this.refusal.message);
    if (this.state === "lost") return this.again();
    if (this.state === "talking" && this.token && !FINAL.includes(code)) return this.lose();
    if (this.refusal) return this.end(this.refusal.code, this.refusal.message);
    if (!this.opened) return this.end("unreachable");
    return this.end({ 1012: "stopping", 1013: "queue_full" }[code] ?? "connection_lost", reason);
  }

  // The connection is gone, the conversation perhaps not.
  lose() {
    this.state = "lost";
    this.refusal = null;
    this.tries = 0;
    this.lostAt = performance.now();
    this.online = () => {
      this.tries = 0;
      this.again();
    };
    window.addEventListener("online", this.online);
    this.again();
  }

  again() {
    clearTimeout(this.retry);
    const left = this.grace - (performance.now() - this.lostAt) / 1000;
    if (this.refusal || left < 0) return this.end("connection_lost", this.refusal?.message);
    this.on.lost(left);
    const wait = Math.min(2000, 200 + 400 * this.tries++);
    this.retry = setTimeout(() => this.state === "lost" && this.open(this.token), wait);
  }

  // Nothing has come for a while: the network is gone, and the browser has not noticed.
  listenFor() {
    clearTimeout(this.silence);
    if (this.state !== "talking" && this.state !== "lost") return;
    this.silence = setTimeout(() => {
      letGo(this.socket, 4000); // from 4000 on the server waits for us to come again
      if (this.state === "talking") this.lose();
      else this.again();
    }, SILENT);
  }

  tell(event) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  // A piece of the microphone's sound, Int16Array; left out while there is no connection, or too slow a one.
  say(samples) {
    if (this.state !== "talking" || this.socket.readyState !== WebSocket.OPEN) return;
    if (this.socket.bufferedAmount > UNSENT) return;
    this.sent += samples.length;
    this.tell({ type: "session.input_audio.append", audio: base64Of(samples) });
  }

  // The server hears silence from now on, or not; it is told what it does not know.
  mute(muted) {
    this.silenced = muted;
    if (this.state !== "talking" || muted === this.told) return;
    this.told = muted;
    this.tell({ type: `session.input_audio.${muted ? "mute" : "unmute"}` });
  }

  // Hang up; the server's last words are not waited for.
  close() {
    this.tell({ type: "session.close" });
    this.end("close_requested");
  }

  end(code, message = "") {
    clearTimeout(this.silence);
    clearTimeout(this.retry);
    window.removeEventListener("online", this.online);
    const over = this.state === "over";
    this.state = "over";
    if (this.socket) letGo(this.socket);
    if (!over) this.on.ended({ code, message });
  }
}

// Let go of a socket without waiting for the other side.
function letGo(socket, code = 1000) {
  socket.onopen = socket.onmessage = socket.onclose = null;
  socket.close(code);
}

export function base64Of(samples) {
  return btoa(String.fromCharCode(...new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength)));
}

export function samplesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length & ~1);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return new Int16Array(bytes.buffer);
}
