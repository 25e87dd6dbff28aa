"""What tests of codec recipes share."""

from types import SimpleNamespace

import pytest

from codecs_recipes import clips


@pytest.fixture
def recorded(monkeypatch):
    """Instead of recorded corpora, some sounds like speech."""

    def read(corpora, rate, apart, pack, channels=1):
        found = [clip.repeat(channels, 1) for clip in clips(rate)]
        told = {"speakers": ["a", "b", "c"], "texts": ["one two", "", "three"], "corpora": ["librispeech_other"] * 3}
        return SimpleNamespace(clips=found, held_out=found[:1], **told)

    monkeypatch.setattr("vivavoce.data.recordings.read_recordings", read)
    monkeypatch.setattr("vivavoce.data.recordings.excerpts", lambda held_out, *args, **options: held_out)
