"""A browser whose microphone plays a recording, and the server that its pages come from."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from browser.chromium import Chromium, Page, find_chromium
from serving.conftest import serve  # noqa: F401  (a fixture)

RECORDINGS = Path(__file__).resolve().parents[2] / "examples" / "recordings"
QUESTION = RECORDINGS / "three-four-george-joined.wav"
BEFORE, AFTER = 1.0, 1.7  # seconds of silence around the question, which is asked again and again
FAKE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium; its microphone asks `QUESTION` again and again. `talk.test` is this machine under a name that browsers
    do not trust."""
    if find_chromium() is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("Chromium is not installed: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    samples, rate = soundfile.read(QUESTION)
    around = [np.zeros(int(BEFORE * rate)), samples, np.zeros(int(AFTER * rate))]
    soundfile.write(folder / "question.wav", np.concatenate(around), rate, subtype="PCM_16")
    flags = (
        *FAKE, f"--use-file-for-fake-audio-capture={folder / 'question.wav'}", "--ignore-certificate-errors",
        "--host-resolver-rules=MAP talk.test 127.0.0.1",
    )  # fmt: skip
    with Chromium(folder / "profile", *flags) as started:
        yield started


@pytest.fixture
def open_page(browser):
    """`open_page("http://127.0.0.1:8998/")` -> a page of its own that is ready; what its console finds wrong fails the
    test, unless `page.faults` is emptied."""
    pages = []

    def opened(url: str, before: str = "", ready: bool = True) -> Page:
        page = browser.open(url, before)
        pages.append(page)
        page.size(1180, 760)
        if ready:
            page.wait("document.body.dataset.state === 'idle' && !document.getElementById('model').hidden")
        return page

    yield opened
    faults = [fault for page in pages for fault in page.faults]
    for page in pages:
        page.close()
    assert not faults, "\n".join(faults)


@pytest.fixture
def photograph():
    """`photograph(page, "idle")` keeps a picture where `VIVAVOCE_SCREENSHOTS` names a folder."""
    folder = os.environ.get("VIVAVOCE_SCREENSHOTS")

    def take(page: Page, name: str) -> None:
        if folder:
            time.sleep(0.4)  # what fades has faded
            path = Path(folder) / f"page-{name}.png"
            page.photograph(path)
            Image.open(path).convert("RGB").quantize(192).save(path, optimize=True)

    return take
