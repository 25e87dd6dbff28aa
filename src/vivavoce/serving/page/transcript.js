// Who said what, when: words that come one by one become turns, one under the other.

import { element } from "./view.js";

const PAUSE = 0.8; // seconds without a word of the same side, after which a new turn begins

export class Transcript {
  // `list`: the <ol> that shows it; `names`: {user, model}.
  constructor(list, names) {
    Object.assign(this, { list, names });
    this.clear();
  }

  clear() {
    this.turns = [];
    this.open = {};
    this.offset = 0;
    this.list.replaceChildren();
  }

  // What one side ("user" or "model") said from start_ms to end_ms of the conversation.
  add(side, { delta, start_ms = 0, end_ms = start_ms }) {
    const [start, end] = [start_ms / 1000, end_ms / 1000];
    let turn = this.open[side];
    if (!turn || start - turn.end > PAUSE) {
      if (!delta.trim()) return;
      turn = this.begin(side, start);
    }
    turn.text = (turn.text + delta).replace(/\s+/g, " ").trimStart();
    turn.end = Math.max(turn.end, end);
    turn.words.textContent = turn.text;
    this.follow();
  }

  begin(side, start) {
    const name = element("b", { textContent: this.names[side] }), words = element("p");
    const time = element("time", { textContent: clock(start, 1), dateTime: `PT${start.toFixed(2)}S` });
    const head = element("span", { className: "head" }, name, " ", time);
    const item = element("li", { className: `turn ${side}` }, head, words);
    const turn = { side, start, end: start, text: "", words, item };
    this.open[side] = turn;
    let at = this.turns.length;
    while (at && this.turns[at - 1].start > start) at--;
    this.turns[at] ? this.turns[at].item.before(item) : this.list.append(item);
    this.turns.splice(at, 0, turn);
    return turn;
  }

  // A remark between the turns: "2.1 s were lost".
  remark(text) {
    this.list.append(element("li", { className: "remark", textContent: text }));
    this.open = {};
    this.follow();
  }

  // Stay at the end, unless somebody has scrolled up to read.
  follow() {
    const box = this.list.parentElement;
    if (box.scrollHeight - box.scrollTop - box.clientHeight < 160) box.scrollTop = box.scrollHeight;
  }

  // As a text file.
  text() {
    return this.turns.map((turn) => `[${clock(turn.start, 2)}] ${this.names[turn.side]}: ${turn.text}\n`).join("");
  }
}

// Seconds as m:ss, with some digits behind.
export function clock(seconds, digits = 0) {
  const unit = 10 ** digits, all = Math.floor(seconds * unit + 1e-6);
  const minutes = Math.floor(all / (60 * unit)), rest = (all / unit - 60 * minutes).toFixed(digits);
  return `${minutes}:${rest.padStart(digits ? 3 + digits : 2, "0")}`;
}
