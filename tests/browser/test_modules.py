"""The page's own modules, each by itself, in a browser."""

import json

import numpy as np
import pytest

import vivavoce
from vivavoce.serving.app import Server, create_app
from vivavoce.serving.core import Core
from vivavoce.serving.run import running
from vivavoce.serving.settings import ServerSettings

ALL = "playback_buffer resampler echo latency transcript wav words live settings sound orb"


@pytest.fixture(scope="module")
def run(browser):
    """`run("code that uses what modules export; return value")` in a page of the package."""
    model = vivavoce.load("echo")
    with running(create_app(Server(Core(model, model.name, ServerSettings(rows=1)), drain=0.0), ("page",))) as port:
        page = browser.open(f"http://127.0.0.1:{port}/")
        modules = [f"import('./page/{name}.js')" for name in ALL.split()]

        def evaluate(code):
            given = f"Object.assign({{}}, ...(await Promise.all([{', '.join(modules)}])))"
            return page.evaluate(f"(async () => {{ const $ = {given}; {code} }})()")

        yield evaluate
        page.close()


RATES = [(48_000, 24_000), (44_100, 24_000), (16_000, 24_000), (24_000, 48_000), (24_000, 44_100)]


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_the_resampler_keeps_the_sound_and_its_time(run, rates):
    """Pieces of any length give what one piece gives; a sine stays that sine, and what is too high goes."""
    code = f"""
      const [from, to] = {json.dumps(rates)}, low = Math.min(from, to);
      const sine = (hertz, at, rate) => Math.sin((2 * Math.PI * hertz * at) / rate);
      const through = (hertz, sizes) => {{
        const r = new $.Resampler(from, to), out = [];
        for (let at = 0, k = 0, length; at < from; at += length) {{
          length = Math.min(sizes[k++ % sizes.length], from - at);
          out.push(...r.process(Float32Array.from({{ length }}, (_, i) => sine(hertz, at + i, from))));
        }}
        return out;
      }};
      const most = (values) => Math.max(...values.map(Math.abs));
      const worst = (hertz) => most(through(hertz, [128]).map((v, k) => k < 1000 ? 0 : v - sine(hertz, k, to)));
      const whole = through(997, [from]), cut = through(997, [1, 7, 128, 1000]);
      const high = from > to ? most(through(0.56 * to, [128]).slice(1000)) : 0;
      return [worst(997), worst(0.4 * low), high, whole.length, cut.length, most(whole.map((v, i) => v - cut[i]))];"""
    low, near, high, whole, cut, apart = run(code)
    assert low < 1e-4 and near < 2e-3 and high < 2e-3
    assert whole == cut and apart < 1e-6
    assert abs(whole - rates[1]) <= 100  # the filter has been given silence before, and holds the end


def test_the_playback_buffer_waits_as_little_as_it_can(run):
    """In time, late once, then in a burst: each gap is counted and makes the margin larger; what piles up goes, in
    silence."""
    code = """
      const b = new $.PlaybackBuffer(24000), ms = 24, out = new Float32Array(10 * ms), heard = [];
      const piece = (value) => new Float32Array(80 * ms).fill(value);
      const take = (times) => { for (let i = 0; i < times; i++) { b.take(out); heard.push(out[0]); } };
      const log = [];
      b.put(piece(0.5)); take(3); log.push(heard.every((v) => v === 0));  // the margin first
      take(1); take(4); log.push(heard.slice(-2).every((v) => v === 0.5), b.gaps);
      b.put(piece(0.25)); take(8); b.put(piece(0.25)); take(8);
      log.push(b.gaps, b.position / ms);
      take(5); log.push(b.gaps, b.margin.toFixed(3));       // too late
      b.put(piece(0.5)); take(3); log.push(heard.at(-1)); take(6); log.push(heard.at(-1)); // the larger margin
      for (let i = 0; i < 6; i++) b.put(piece(0));           // half a second at once
      const before = b.waiting / ms;
      for (let i = 0; i < 60; i++) { take(8); b.put(piece(0)); }
      take(8); log.push(before > 450, b.waiting / ms < 180, b.gaps, b.leftOut > 0);
      b.flush(); take(1); log.push(heard.at(-1), b.waiting);
      return log;"""
    assert run(code) == [True, True, 0, 0, 210, 1, "0.060", 0, 0.5, True, True, 1, True, 0, 0]


def test_the_position_counts_all_that_is_gone(run):
    code = """
      const b = new $.PlaybackBuffer(24000), out = new Float32Array(240);
      for (let i = 0; i < 200; i++) {
        b.put(new Float32Array(2400).fill(i % 2 ? 0.1 : 0));
        for (let k = 0; k < 9; k++) b.take(out);
      }
      b.flush();
      return [b.position, b.leftOut > 0];"""
    assert run(code) == [200 * 2400, True]


def test_an_echo_is_told_from_somebody_who_speaks(run):
    code = """
      let seed = 7;
      const chance = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
      const speech = (n) => { let level = 0.1, on = true; return Array.from({ length: n }, (_, i) => {
        if (i % 8 === 0) { on = chance() > 0.3; level = 0.02 + 0.2 * chance(); }
        return on ? level * (0.5 + chance()) : 0.0003; }); };
      const likeness = (played, heard) => {
        const watch = new $.EchoWatch();
        played.forEach((v, i) => watch.addPlayed([v], i * 0.02));
        heard.forEach((v, i) => watch.addHeard(v, i * 0.02));
        const { best, apart } = watch.likeness();
        return [best, apart, watch.sure()];
      };
      const model = speech(300), user = speech(300), late = (x, n) => [...Array(n).fill(0), ...x];
      const room = late(model, 9).map((v) => 0.1 * v + 0.001 * chance());
      const both = room.map((v, i) => v + (user[i] ?? 0));
      const quiet = Array(300).fill(0.0004);
      const begins = (level) => quiet.map((v, i) => i < 220 ? v : level * (1 + 0.1 * chance()));
      return [likeness(model, room), likeness(model, user), likeness(model, both), likeness(model, quiet),
              likeness(late(user, 15), user), likeness(quiet, room), likeness(begins(0.2), begins(0.1)),
              likeness(model.slice(0, 150), room.slice(0, 150))];"""
    echo, *others = run(code)
    assert echo[0] > 0.9 and echo[1] > 0.5 and echo[2]
    assert not any(sure for *_, sure in others), others
    assert others[5][0] > 0.9  # two tones that begin together are alike, but no echo


def test_words_become_turns(run):
    code = """
      const list = document.createElement("ol"), box = document.createElement("div");
      box.append(list);
      const t = new $.Transcript(list, { user: "You", model: "mini" });
      const at = (s) => ({ start_ms: 1000 * s, end_ms: 1000 * s + 200 });
      t.add("user", { delta: "three", ...at(1) });
      t.add("user", { delta: " four", ...at(1.6) });
      t.add("model", { delta: "<b>three", ...at(2.4) });
      t.add("user", { delta: "and", ...at(3.0) });
      t.add("model", { delta: " plus", ...at(3.2) });
      t.add("user", { delta: " ", ...at(5.0) });
      t.add("user", { delta: " five", ...at(65.04) });
      t.remark("lost");
      t.add("user", { delta: "six", ...at(65.4) });
      t.add("model", { delta: "early", ...at(64) });
      const shown = [...list.children].map((e) => [e.className, e.querySelector("p")?.textContent ?? e.textContent]);
      const time = list.querySelectorAll("time")[3].textContent;
      return [shown, time, list.querySelector("p b") === null, t.text().split("\\n")[0]];"""
    turns, time, escaped, text = run(code)
    assert turns == [
        ["turn user", "three four"], ["turn model", "<b>three plus"], ["turn user", "and"], ["turn model", "early"],
        ["turn user", "five"], ["remark", "lost"], ["turn user", "six"],
    ]  # fmt: skip
    assert time == "1:04.0" and escaped and text == "[0:01.00] You: three four"


def test_a_recording_is_a_wav_file(run):
    code = """
      const r = new $.Recording(24000);
      r.add(Int16Array.of(1, -2, 3, -4)); r.add(Int16Array.of(5, -6));
      return [r.seconds, [...new Uint8Array(await r.blob().arrayBuffer())]];"""
    seconds, data = run(code)
    import io
    import wave

    with wave.open(io.BytesIO(bytes(data))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (2, 2, 24_000, 3)
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [1, -2, 3, -4, 5, -6]
    assert seconds == 3 / 24_000


def test_sound_survives_base64(run):
    code = "return [...$.samplesOf($.base64Of(Int16Array.of(0, 1, -1, 32767, -32768)))]"
    assert run(code) == [0, 1, -1, 32767, -32768]


def test_waits_and_refusals_are_in_words(run):
    code = """
      const w = (position, eta_seconds) => $.waiting({ position, eta_seconds });
      return [w(1, null), w(3, 130), w(2, 0.4), w(1, 7.2), w(9, 8000), $.clock(3599.96, 1), $.clock(59.99), $.clock(0),
              $.refusal({ code: "close_requested" }), $.refusal({ code: "never_heard_of", message: "it rains" }).text,
              $.refusal({ code: "queue_full", message: "" }).then];"""
    assert run(code) == [
        "You are next.", "You are number 3 in the queue: about 2 minutes.",
        "You are number 2 in the queue: about a second.", "You are next: about 7 seconds.",
        "You are number 9 in the queue: about 2 hours.", "59:59.9", "0:59", "0:00",
        None, "The server says: it rains.", "again",
    ]  # fmt: skip


def test_every_refusal_of_the_server_has_words(run):
    """The codes with which `access`, `admission` and the core refuse or end a conversation."""
    codes = (
        "queue_full queue_timeout stopping failed missing_api_key invalid_api_key key_expired scope_missing"
        " origin_not_allowed too_many_conversations expired idle slow_client shutdown connection_lost"
    ).split()
    said = run(f"return {json.dumps(codes)}.map((code) => $.refusal({{ code, message: '' }}))")
    assert all(one["title"] != "The server ended the conversation" and one["text"] for one in said)


def test_latency_is_what_was_captured_less_what_was_played(run):
    code = """
      const l = new $.Latency(), devices = { microphone: 0.01, speaker: 0.03 };
      const before = l.now(devices, 0.05);
      l.sent(10, 100); l.heard(9.8, 100.1);
      const plain = l.now(devices, 0.05);
      l.correct({ silent: 5, dropped: 2400, frame_ms: 80, said_ms: 10300 }, 10);
      return [before, plain.total, plain.way, l.now(devices, 0.05).total];"""
    before, total, way, corrected = run(code)
    assert before is None and (total, way) == pytest.approx((0.34, 0.25))
    assert corrected == pytest.approx(0.34 + 0.4 - 0.1 - 0.3)


def test_settings_are_kept_and_strange_ones_are_not(run):
    code = """
      localStorage.setItem("vivavoce.seed", '"x"'); localStorage.setItem("vivavoce.theme", "{");
      localStorage.setItem("vivavoce.pushToTalk", "true"); sessionStorage.setItem("vivavoce.key", '"k"');
      const s = $.remembered(), found = [s.seed, s.theme, s.pushToTalk, s.key];
      s.set("noiseSuppression", false); s.set("key", "z");
      return [found, $.remembered().wishes().noiseSuppression, localStorage.getItem("vivavoce.key")];"""
    assert run(code) == [[0, "auto", True, "k"], False, None]
