// What somebody has chosen, kept in this browser: the key for as long as the tab is open, the rest for good.

const DEFAULTS = {
  microphone: "", speaker: "", echoCancellation: true, noiseSuppression: true, autoGainControl: true,
  announce: false, seed: 0, key: "", theme: "auto", pushToTalk: false,
};
const SHOWN = Object.keys(DEFAULTS).filter((name) => !["theme", "pushToTalk"].includes(name)); // in the form
const PREFIX = "vivavoce.";

class Settings {
  constructor() {
    this.onchange = () => {};
    for (const [name, standard] of Object.entries(DEFAULTS)) {
      let found;
      try {
        found = JSON.parse(store(name).getItem(PREFIX + name));
      } catch {} // no storage here, or something else in it
      this[name] = typeof found === typeof standard ? found : standard;
    }
  }

  set(name, value) {
    this[name] = value;
    try {
      store(name).setItem(PREFIX + name, JSON.stringify(value));
    } catch {} // private windows may have none
    this.put(name);
  }

  // What getUserMedia is asked for.
  wishes() {
    const { microphone, speaker, echoCancellation, noiseSuppression, autoGainControl } = this;
    return { microphone, speaker, echoCancellation, noiseSuppression, autoGainControl };
  }

  // Fill the form, and follow what is changed in it.
  show() {
    for (const name of SHOWN) {
      this.put(name);
      field(name).onchange = () => {
        const { type, checked, value } = field(name);
        if (type === "number") this.set(name, wholeNumber(value));
        else this.set(name, type === "checkbox" ? checked : value.trim());
        this.onchange(name);
      };
      if (name === "announce") this.onchange(name);
    }
  }

  put(name) {
    if (!SHOWN.includes(name)) return;
    const box = field(name);
    if (box.type === "checkbox") box.checked = this[name];
    else box.value = this[name];
  }

  // The devices to choose from; the chosen one stays chosen while it is away.
  choices(name, found, word) {
    const box = field(name), standard = box.options[0];
    const options = found
      .filter(({ id }) => !["default", "communications"].includes(id))
      .map(({ id, label }, i) => new Option(label || `${word} ${i + 1}`, id));
    box.replaceChildren(standard, ...options);
    box.value = options.some((option) => option.value === this[name]) ? this[name] : "";
  }
}

export function remembered() {
  return new Settings();
}

function wholeNumber(text) {
  return Math.min(Number.MAX_SAFE_INTEGER, Math.max(0, Math.trunc(Number(text) || 0)));
}

function field(name) {
  return document.getElementById(name);
}

function store(name) {
  return name === "key" ? sessionStorage : localStorage;
}
