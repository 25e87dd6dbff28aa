"""Made-up tokens: the same row whenever it is asked for, ends where they belong, something in it to learn."""

import numpy as np
import pytest
import torch

from vivavoce.data.token_patterns import TokenPatterns
from vivavoce.errors import RecipeError
from vivavoce.layouts import StreamSpec

STREAMS = {
    "text": (StreamSpec("text"), 12),
    "units": (StreamSpec("units", rate=25, end=16), 16),
    "snac": (StreamSpec("snac", 3, 12.5, (1, 2, 4)), 12),
}


def test_a_row_is_the_same_in_any_batch_and_another_seed_another():
    patterns = TokenPatterns(STREAMS)
    whole, part = patterns.batch(0, 6), patterns.batch(4, 2)
    for name in STREAMS:
        longest = part.values[name].shape[2]
        assert torch.equal(whole.values[name][4:, :, :longest], part.values[name])
        assert torch.equal(whole.lengths[name][4:], part.lengths[name])
    other = TokenPatterns(STREAMS, seed=1).batch(0, 6)
    assert whole.values["units"].shape != other.values["units"].shape or not torch.equal(
        whole.values["units"], other.values["units"]
    )


@pytest.mark.parametrize("ends", ["stream", "pieces"])
def test_lengths_words_and_ends_agree(ends):
    cells = TokenPatterns(STREAMS, ends=ends).batch(0, 5)
    for name, (spec, size) in STREAMS.items():
        for row in range(5):
            counts = cells.counts[f"word/{name}"][row].clamp(min=0)
            for level in range(spec.levels):
                length = int(cells.lengths[name][row, level])
                ids = cells.values[name][row, level]
                assert length == int(counts.sum()) * spec.cells(level)
                assert (ids[:length] >= 0).all() and (ids[length:] == -1).all()
            if name == "units":
                found = (cells.values[name][row, 0] == size).nonzero()[:, 0].tolist()
                last = (counts.cumsum(0) - 1).unique().tolist()
                assert found == (last if ends == "pieces" else last[-1:])


def test_streams_say_the_same_words():
    cells = TokenPatterns(STREAMS, noise=0.0).batch(0, 40)
    spelled: dict[int, set[int]] = {}
    for row in range(40):
        counts = cells.counts["word/units"][row]
        starts = np.cumsum([0, *counts[counts >= 0].tolist()])[:-1]
        for word, start in enumerate(starts):
            text, unit = cells.values["text"][row, 0, word], cells.values["units"][row, 0, start]
            spelled.setdefault(int(text), set()).add(int(unit))
    assert len(spelled) > 4 and all(len(units) == 1 for units in spelled.values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"words": (4, 2)}, "least"),
        ({"ends": "words"}, "ends words"),
        ({"noise": 1.0}, "noise 1.0"),
    ],
)
def test_a_wrong_option_is_refused(options, expected):
    with pytest.raises(RecipeError, match=expected):
        TokenPatterns(STREAMS, **options)
    with pytest.raises(RecipeError, match="no multiple of the slowest"):
        TokenPatterns({"a": (StreamSpec("a", rate=10), 4), "b": (StreamSpec("b", rate=25), 4)})
