// What is seen: the words of the status, cards that tell something, levels, colours.

export const find = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// The one line that says what is going on; `aside` is seen, but not read aloud each time that it changes.
export function say(text, aside = "") {
  const [words, rest] = find("status").children;
  if (words.textContent !== text) words.textContent = text;
  rest.textContent = aside;
}

// A card with a title. `problem`: it is told at once to who cannot see it. `seconds`: after which it goes, 0 for never.
// `actions`: [label, function] for each button.
export function notice(code, title, text, { problem = false, seconds = 0, actions = [] } = {}) {
  dismiss(code);
  const card = element("div", { className: problem ? "notice problem" : "notice" });
  card.dataset.code = code;
  card.setAttribute("role", problem ? "alert" : "status");
  card.append(element("p", {}, element("b", { textContent: title }), text));
  if (actions.length) {
    const button = ([textContent, onclick]) => element("button", { type: "button", textContent, onclick });
    card.append(element("div", { className: "row" }, ...actions.map(button)));
  }
  find("notices").append(card);
  if (seconds) setTimeout(() => card.remove(), 1000 * seconds);
  return card;
}

export function dismiss(...codes) {
  for (const card of [...find("notices").children]) if (codes.includes(card.dataset.code)) card.remove();
}

// A card that asks for a key, and `use(key)` when there is one.
export function askForKey(card, use) {
  const field = element("input", { type: "password", autocomplete: "off", spellcheck: false });
  field.setAttribute("aria-label", "Key");
  const form = element("form", {}, field, element("button", { textContent: "Talk" }));
  form.onsubmit = (event) => {
    event.preventDefault();
    if (field.value.trim()) use(field.value.trim());
    else field.focus();
  };
  card.append(form);
  field.focus();
}

// The level of one side ("user", "model"), RMS; the bar shows the upper 50 dB.
export function meter(side, level) {
  const bar = find(`${side}-level`), share = Math.max(0, Math.min(1, 1 + Math.log10(level + 1e-9) / 2.5));
  bar.firstElementChild.style.transform = `scaleX(${share.toFixed(3)})`;
  const percent = String(Math.round(20 * share) * 5);
  if (bar.getAttribute("aria-valuenow") !== percent) bar.setAttribute("aria-valuenow", percent);
}

// "auto", "light" or "dark".
export function colours(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const words = { auto: "as the system has them", light: "light", dark: "dark" };
  find("theme").title = `Colours: ${words[theme]}`;
  find("theme").setAttribute("aria-label", find("theme").title);
}

// The parts of the latency ([name, seconds], null where it is not known), and how player and server keep time.
export function figures(late, player, server) {
  const ms = (seconds) => `${Math.round(1000 * seconds)} ms`;
  find("latency").textContent = late ? ms(late.total) : "\u2013";
  find("latency").classList.toggle("late", late?.total > 1);
  if (!find("figures").open) return;
  const rows = [["buffer\u2019s margin", ms(player.margin)], ["gaps in playing", player.gaps]];
  if (late) {
    rows.unshift(
      ["microphone", ms(late.microphone)], ["network and model", ms(late.way)],
      ["waiting to be played", ms(late.buffer)], ["loudspeaker", ms(late.speaker)],
    );
  }
  if (server) {
    rows.push(
      ["model\u2019s frames", server.frames], ["held: input late", server.skipped],
      ["heard as silence", server.silent], ["caught up", server.caught_up],
      ["input waits", `${server.input_waits_ms} ms`], ["output ahead", `${server.output_ahead_ms} ms`],
      ["model\u2019s step", `${server.step_ms} ms`], ["late frames", server.late_frames],
    );
  }
  const shown = rows.map(([textContent, value]) =>
    element("div", {}, element("dt", { textContent }), element("dd", { textContent: value })),
  );
  find("figure-list").replaceChildren(...shown);
}

// A file for somebody who presses a link: conversation-2026-01-31-1805.wav.
export function fileName(kind) {
  const now = new Date(), two = (number) => String(number).padStart(2, "0");
  const day = [now.getFullYear(), now.getMonth() + 1, now.getDate()].map(two).join("-");
  return `conversation-${day}-${two(now.getHours())}${two(now.getMinutes())}.${kind}`;
}
