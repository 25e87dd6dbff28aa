"""What the page says when something is in the way: in words, and with a way on."""

import pytest

from browser.talking import begin, hang_up, is_in, until
from vivavoce.serving.recording import Recorder

NO_MICROPHONE = """navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("none", "%s") }"""


def test_the_page_as_it_is_found(serve, open_page, photograph):
    port, _ = serve("mini", dialects=("live", "page"), rows=1)
    page = open_page(f"http://127.0.0.1:{port}/")
    assert page.text("#model") == "mini" and "three plus four" in page.text("#hint")
    photograph(page, "idle")
    page.press("#open-settings")
    page.wait("document.getElementById('settings').open")
    photograph(page, "settings")
    page.key("Escape", "Escape")
    page.wait("!document.getElementById('settings').open")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.media(prefers_color_scheme="dark")
    page.wait(f"{ground} !== '{light}'")
    photograph(page, "dark")
    page.press("#theme")  # automatic -> light, whatever the system says
    page.wait(f"{ground} === '{light}'")
    page.press("#theme")
    page.media(prefers_color_scheme="light")
    page.wait(f"{ground} !== '{light}'")
    assert all(url.startswith((f"http://127.0.0.1:{port}/", "data:image/svg")) for url in page.requests), page.requests


def test_one_waits_in_the_queue_and_gets_a_place(serve, open_page, photograph):
    port, server = serve("tone", dialects=("live", "page"), rows=1)
    first, second = (open_page(f"http://127.0.0.1:{port}/") for _ in range(2))
    begin(first)
    server.core.queue.ended(50.0)  # as long as conversations lasted here
    second.press("#talk")
    second.wait(is_in("queued"))
    assert second.text("#status") == "You are next: about 50 seconds."
    assert second.text("#talk") == "Leave"
    photograph(second, "queue")
    hang_up(first)
    second.wait(is_in("talking"))
    assert second.text("#status") == "Speak whenever you like."
    hang_up(second)
    assert until(lambda: not server.core.live and not len(server.core.queue))


def test_a_full_server_says_so(serve, open_page, photograph):
    port, _ = serve("tone", dialects=("live", "page"), rows=1, queue=0)
    first, second = (open_page(f"http://127.0.0.1:{port}/") for _ in range(2))
    begin(first)
    second.press("#talk")
    second.wait("document.querySelector('[data-code=queue_full]')")
    assert "The server is full" in second.text("#notices")
    photograph(second, "full")
    hang_up(first)
    second.press("[data-code=queue_full] button")
    second.wait(is_in("talking"))
    assert not second.text("#notices")
    hang_up(second)


def test_the_servers_end_is_told(serve, open_page):
    port, server = serve("tone", dialects=("live", "page"), session=4.0, warn=3.0)
    page = open_page(f"http://127.0.0.1:{port}/")
    begin(page)
    page.wait("document.querySelector('[data-code=expiring]')")
    page.wait("document.querySelector('[data-code=expired]')")
    assert "Time is up" in page.text("#notices") and "nearly" not in page.text("#notices")
    assert until(lambda: not server.core.live)


@pytest.mark.parametrize(
    "error, code, words",
    [
        ("NotFoundError", "no-microphone", "There is no microphone"),
        ("NotAllowedError", "denied", "The microphone is not allowed"),
        ("NotReadableError", "busy", "Another program may have it"),
    ],
)
def test_a_microphone_that_cannot_be_had(serve, open_page, photograph, error, code, words):
    port, server = serve("tone", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/", before=NO_MICROPHONE % error)
    page.press("#talk")
    page.wait(f"document.querySelector('[data-code={code}]')")
    assert words in page.text("#notices") and page.text("#talk") == "Talk"
    photograph(page, code)
    assert until(lambda: not server.core.live)


def test_a_loudspeaker_that_is_not_there(serve, open_page):
    port, server = serve("tone", dialects=("live", "page"))
    stopped = "Object.defineProperty(AudioContext.prototype, 'state', { get: () => 'suspended' })"
    page = open_page(f"http://127.0.0.1:{port}/", before=stopped)
    page.press("#talk")
    page.wait("document.querySelector('[data-code=no-loudspeaker]')")
    assert "The sound does not start" in page.text("#notices") and page.text("#talk") == "Talk"
    assert not server.core.live


def test_a_microphone_that_gives_nothing_is_noticed(serve, open_page):
    port, _ = serve("tone", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/")
    begin(page)
    page.evaluate(
        "import('./page/main.js').then(({ page }) => { page.watch.lastSound -= 8000; page.sound.source.disconnect() })"
    )
    page.wait("document.querySelector('[data-code=silent]')")
    assert "Nothing comes from the microphone" in page.text("#notices")
    page.evaluate("import('./page/main.js').then(({ page }) => { page.sound.source.connect(page.sound.gate) })")
    page.wait("!document.querySelector('[data-code=silent]')")
    hang_up(page)


def test_who_is_recorded_is_told(serve, open_page, tmp_path):
    port, server = serve("tone", dialects=("live", "page"))
    server.recorder = Recorder(tmp_path / "kept").attach(server.core)
    page = open_page(f"http://127.0.0.1:{port}/")
    assert page.evaluate("document.getElementById('kept').hidden")
    begin(page)
    page.wait("!document.getElementById('kept').hidden")
    assert "This server keeps a recording" in page.text("#turns")
    hang_up(page)
    assert page.evaluate("document.getElementById('kept').hidden")


def test_an_old_browser_is_told(serve, open_page):
    port, _ = serve("tone", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/", before="delete window.AudioWorkletNode")
    assert "This browser is too old" in page.text("#notices") and "audio worklets" in page.text("#notices")
    assert page.evaluate("document.getElementById('talk').disabled")
    very_old = open_page(f"http://127.0.0.1:{port}/", before="delete window.ResizeObserver", ready=False)
    very_old.wait("document.getElementById('status').innerText.startsWith('This page did not start.')")
    very_old.faults.clear()


@pytest.mark.parametrize("width, height", [(390, 844), (320, 568)])
def test_phones(serve, open_page, photograph, width, height):
    port, _ = serve("tone", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/")
    page.size(width, height, phone=True, scale=2)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    page.wait(fits)
    for name in ("talk", "mute", "push", "record", "open-settings", "theme"):
        size = page.evaluate(f"(b => [b.width, b.height])(document.getElementById('{name}').getBoundingClientRect())")
        assert min(size) >= 40, name  # for a finger
    if width == 390:
        photograph(page, "phone")
    page.press("#push")
    begin(page)
    page.press("#hold", ("mousePressed",))
    page.wait("document.querySelector('.turn.user')")
    page.press("#hold", ("mouseReleased",))
    page.wait("document.querySelector('.turn.model')")
    assert page.evaluate(fits)
    if width == 390:
        photograph(page, "phone-talking")
    hang_up(page)


def test_it_is_used_with_the_keyboard_and_read_aloud(serve, open_page):
    port, server = serve("tone", dialects=("live", "page"))
    page = open_page(f"http://127.0.0.1:{port}/")
    reached = []
    for _ in range(9):
        page.key("Tab", "Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert reached[:7] == ["skip", "theme", "open-settings", "talk", "push", "record", ""], reached
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {}
    for node in tree:
        if not node.get("ignored"):
            name = node.get("name", {}).get("value", "")
            roles.setdefault(node["role"]["value"], []).append(name)
    for role in ("button", "meter", "log", "region", "heading"):
        assert roles.get(role) and all(roles[role]), (role, roles.get(role))
    assert "status" in roles and {"Talk", "Settings", "Push to talk"} <= set(roles["button"])
    page.evaluate("document.getElementById('talk').focus()")
    page.key("Enter", "Enter", text="\r")
    page.wait(is_in("talking"))
    assert page.evaluate("document.activeElement.id") == "talk"
    page.key("Enter", "Enter", text="\r")
    page.wait(is_in("idle"))
    assert until(lambda: not server.core.live)
