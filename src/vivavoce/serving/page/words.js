// What is wrong, and what to do about it, in words.

const HOW_TO_SERVE = "vivavoce talk --host 0.0.0.0 --tls auto";

// What keeps this browser from talking at all; null where nothing does. The order matters: without a secure context
// browsers hide the microphone and worklets, which would look like an old browser.
export function obstacle() {
  if (!window.isSecureContext) {
    return {
      code: "insecure",
      title: "The microphone needs a safe connection",
      text:
        `Browsers give a page the microphone only over https://, or on the machine itself. This page came over ` +
        `${location.protocol}//${location.host}. Start the server with TLS and open its https:// address, or open ` +
        `http://localhost:${location.port || 80} on the machine where it runs.`,
      command: HOW_TO_SERVE,
    };
  }
  const missing = [
    ["audio worklets", window.AudioContext && window.AudioWorkletNode],
    ["access to the microphone", navigator.mediaDevices?.getUserMedia],
    ["WebSockets", window.WebSocket],
  ].filter(([, there]) => !there);
  if (!missing.length) return null;
  return {
    code: "old",
    title: "This browser is too old",
    text: `It has no ${missing.map(([name]) => name).join(", no ")}. ${RECENT}`,
  };
}

// What getUserMedia and the audio thread throw.
export function soundTrouble(error) {
  const name = error.name === "SecurityError" ? "NotAllowedError" : error.name;
  const [code, title, text] = SOUND[name] ?? ["sound", "The sound could not be started", `${error.message || error}`];
  return { code, title, text };
}

const RECENT = "Chrome, Edge, Firefox and Safari of the last years can.";
const SOUND = {
  NotAllowedError: [
    "denied", "The microphone is not allowed",
    "Allow it for this page (the sign beside the address), and in the system\u2019s settings for this browser. " +
      "Then press Talk again.",
  ],
  NotFoundError: [
    "no-microphone", "There is no microphone",
    "Plug one in, or switch it on in the system\u2019s settings, and press Talk again.",
  ],
  NotReadableError: [
    "busy", "The microphone cannot be used", "Another program may have it. Close that one, and press Talk again.",
  ],
  AbortError: ["busy", "The microphone stopped", "The system took it away. Press Talk again."],
  NoLoudspeaker: [
    "no-loudspeaker", "The sound does not start",
    "There may be no loudspeaker, or another program has it. Plug one in, and press Talk again.",
  ],
  NoWorklets: ["old", "This browser is too old", `It cannot load what works with the sound. ${RECENT}`],
};

const SLOW = [
  "This connection is too slow",
  "The server had to end the conversation: what it said did not get through in time.", "again",
];
const REFUSALS = {
  queue_full: ["The server is full", "Everybody who fits is talking, and enough others wait already.", "again"],
  queue_timeout: ["No place came free", "You waited as long as this server lets one wait.", "again"],
  too_many_conversations: ["Too many conversations at once", "Each address and each key has so many.", "again"],
  missing_api_key: ["A key is needed", "This server talks to people who have a key. Type yours.", "key"],
  invalid_api_key: ["The key is not right", "The server does not know this key. Type it again.", "key"],
  key_expired: ["The key is over", "It was good for a while only. Ask for a new one.", "key"],
  key_unsendable: ["The key is not right", "It has characters that no key has. Type it again.", "key"],
  scope_missing: ["This key does not open conversations", "Ask for one that does.", "key"],
  origin_not_allowed: ["This page may not talk here", "The server lets in pages of addresses that it knows."],
  stopping: ["The server is being stopped", "Try again in a moment.", "again"],
  shutdown: ["The server was stopped", "Try again in a moment.", "again"],
  failed: ["The model has failed", "Whoever runs this server must start it again; its log says why.", "again"],
  unreachable: ["The server cannot be reached", "It may have been stopped, or the network is gone.", "again"],
  blocked: [
    "The connection was not let through",
    "The server answers, but not to a WebSocket. A proxy in between may have to be told to pass them on.", "again",
  ],
  connection_lost: ["The connection was lost", "It did not come back in time.", "again"],
  resumed_elsewhere: ["The conversation goes on elsewhere", "Another connection has taken it over.", "again"],
  expired: ["Time is up", "A conversation may last so long and no longer. Start another one.", "again"],
  idle: ["Nobody spoke", "The server ended the conversation since nothing was heard for a long time.", "again"],
  slow_client: SLOW,
};

// Why a conversation could not begin, or ended; null where somebody wanted it to end. `then`: "again" or "key".
export function refusal({ code, message }) {
  if (["close_requested", "remote_hangup"].includes(code)) return null;
  const [title, text, then] = REFUSALS[code] ?? ["The server ended the conversation", "", "again"];
  const said = message && then !== "key" ? `The server says: ${message.trim().replace(/\.?$/, ".")}` : "";
  return { code, title, text: [text, said].filter(Boolean).join(" "), then };
}

// "about 2 minutes".
export function duration(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 55) return `${seconds < 10 ? Math.round(seconds) : 5 * Math.round(seconds / 5)} seconds`;
  if (seconds < 90) return "a minute";
  if (seconds < 5400) return `${Math.round(seconds / 60)} minutes`;
  return `${Math.round(seconds / 3600)} hours`;
}

// Where one is in the queue.
export function waiting({ position, eta_seconds: eta }) {
  const place = position === 1 ? "You are next" : `You are number ${position} in the queue`;
  return eta === null || eta === undefined ? `${place}.` : `${place}: about ${duration(eta)}.`;
}

// What to say to the models that come with the package.
export const HINTS = {
  mini: "It knows English digits: say one, or two to be added, like \u201cthree plus four\u201d.",
  tone: "It is a test: it answers with a tone when you have spoken.",
  echo: "It is a test: it says what you say, a moment later. Use headphones.",
};
