"""People talk from the page: what it hears and plays, with a browser whose microphone plays a recorded question."""

import time

import numpy as np

from browser.talking import TURNS, begin, hang_up, likenesses, recorded, shift, until
from vivavoce.systems.signal_models import pitch

QUESTION = 40  # frames: the silence between two questions is shorter


def test_what_is_played_is_what_was_said(serve, open_page, tmp_path):
    """`echo` says what it hears: both channels of the recording hold the same sound, as far apart as the gauge says."""
    port, _ = serve("echo", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/")
    begin(page, record=True)
    shown = []
    while len(shown) < 10:
        time.sleep(0.4)
        if (text := page.text("#latency")).endswith(" ms"):
            shown.append(int(text.removesuffix(" ms")))
    page.wait("document.querySelector('.turn.model')")
    delays = "import('./page/main.js').then(({ page }) => Object.values(page.sound.delays()))"
    devices = 1000 * sum(page.evaluate(delays))
    hang_up(page)
    user, model = recorded(page, tmp_path)
    late = shift(user, model)
    alike = likenesses(user, model, late)
    assert len(alike) > 4 and np.quantile(alike, 0.75) > 0.95, (alike, late)  # sample for sample, gaps aside
    # What `echo` says is a frame older than its answer would be; the gauge counts the devices' own delays in.
    gauge = [1000 * late / 24_000 - 80 + devices - each for each in shown]
    assert min(map(abs, gauge)) < 40, (late / 24_000, shown)


def test_the_seed_is_sent(serve, open_page, tmp_path):
    port, _ = serve("tone", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/")
    page.press("#open-settings")
    page.press("#seed")
    for letter in "20":
        page.key(letter, f"Digit{letter}", text=letter)
    page.key("Escape", "Escape")
    page.wait("!document.getElementById('settings').open")
    begin(page, record=True)
    page.wait("/ends/.test(document.getElementById('turns').innerText)", 60)  # the last word, 0.64 s after the first
    time.sleep(0.5)
    hang_up(page)
    _, model = recorded(page, tmp_path)
    loud = np.flatnonzero(np.abs(model) > 0.1)
    sound = model[loud[0] : loud[0] + 24_000 // 2]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 18))
    assert abs(np.argmax(spectrum) * 24_000 / (1 << 18) - pitch(20)) < 2


def test_mute_and_push_to_talk(serve, open_page, photograph):
    """`tone` answers when somebody has spoken: nothing while muted, an answer when the space bar was held."""
    port, server = serve("tone", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/")
    page.press("#push")
    begin(page)
    assert page.text("#status").startswith("Hold the button or the space bar")
    (conversation,) = server.core.live.values()
    heard = []
    conversation.observers.append(lambda frame: heard.append(float(np.abs(frame.heard).max())))
    assert until(lambda: len(heard) >= QUESTION, 60.0)
    assert max(heard) < 0.001 and not page.evaluate(TURNS)
    assert page.evaluate("document.activeElement.id") == "hold"  # so that the space bar does not hang up
    page.key(" ", "Space", ("keyDown",), " ")
    page.wait("document.getElementById('hold').classList.contains('held')")
    photograph(page, "push-to-talk")
    page.wait("document.querySelector('.turn.user')")
    page.key(" ", "Space", ("keyUp",))
    page.wait("!document.getElementById('hold').classList.contains('held')")
    page.wait("document.querySelector('.turn.model')")

    page.press("#record")  # a click takes the space bar to itself for a moment only
    assert page.evaluate("document.activeElement.id") == "hold"
    page.press("#push")  # off again: now the button mutes
    page.wait("!document.getElementById('mute').disabled")
    page.press("#mute")
    page.wait("document.getElementById('mute').getAttribute('aria-pressed') === 'true'")
    assert page.text("#status") == "Muted: the model hears silence."
    photograph(page, "muted")
    late = len(heard) + 12  # frames that may be on their way
    assert until(lambda: len(heard) >= late + QUESTION, 60.0)
    assert max(heard[late:]) < 0.001
    assert page.evaluate("document.getElementById('user-level').getAttribute('aria-valuenow')") == "0"
    page.press("#mute")
    heard.clear()
    assert until(lambda: max(heard, default=0.0) > 0.01, 60.0)
    hang_up(page)


def test_devices_are_chosen_while_one_talks(serve, open_page):
    port, _ = serve("echo", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/")
    begin(page)
    page.evaluate("import('./page/main.js').then(({ page }) => { window.page = page })")
    track = "page.sound.stream.getAudioTracks()[0].getSettings()"
    assert page.evaluate(f"{track}.echoCancellation && {track}.noiseSuppression")
    page.press("#open-settings")
    page.wait("document.getElementById('microphone').options.length === 3")
    for name in ("microphone", "speaker"):
        page.evaluate(
            f"(() => {{ const box = document.getElementById('{name}'); box.selectedIndex = 2;"
            " box.dispatchEvent(new Event('change')) })()"
        )
    page.press("#echoCancellation")
    page.wait(f"{track}.deviceId === document.getElementById('microphone').value && !{track}.echoCancellation")
    page.wait("page.sound.context.sinkId === document.getElementById('speaker').value")
    page.key("Escape", "Escape")
    hang_up(page)
    page.go(f"http://127.0.0.1:{port}/")  # and is remembered
    page.wait("document.getElementById('microphone').selectedIndex === 2")
    assert page.evaluate("document.getElementById('echoCancellation').checked") is False


def test_the_page_says_that_the_model_hears_itself(serve, open_page, photograph):
    port, _ = serve("tone", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/")
    begin(page)
    page.evaluate(
        """import('./page/main.js').then(({ page }) => {
          page.live.on.sound = () => {};
          const { context, playback, gate } = page.sound, air = new DelayNode(context, { delayTime: 0.06 });
          const room = new GainNode(context, { gain: 0.2 });
          page.sound.source.disconnect();
          playback.connect(air).connect(room).connect(gate);
          const bursts = (k) => Int16Array.from({ length: 2400 }, (_, i) =>
            (1 + Math.sin(k * 1.7) * Math.sin(k * 0.9)) * 6000 * Math.sin(i * 0.2));
          let k = 0;
          page.timer = setInterval(() => page.sound && page.sound.play(bursts(k++)), 100);
        })"""
    )
    page.wait("document.querySelector('[data-code=echo]')", 30)
    assert "hear itself" in page.text("[data-code=echo]")
    photograph(page, "echo")
    page.press("[data-code=echo] button")
    page.wait("!document.querySelector('[data-code=echo]')")
    hang_up(page)
