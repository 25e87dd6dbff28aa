"""What is hidden: as often, as long and where the papers say, row by row."""

import math

import numpy as np
import pytest
import torch

from proves import proves
from vivavoce.errors import RecipeError
from vivavoce.training.ssl_masking import Alteration, Masking, mask_rows
from vivavoce.training.ssl_mixing import mixed


def chance(seed):
    return torch.Generator().manual_seed(seed)


def runs(mask):
    """Lengths of the hidden runs of a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.numpy().astype(int), [0]])))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize("frames,prob,length", [(200, 0.65, 10), (499, 0.8, 10), (60, 0.4, 5)])
def test_spans_hide_as_much_as_transformers_do(frames, prob, length):
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

    np.random.seed(0)
    theirs = np.concatenate([_compute_mask_indices((1, frames), prob, length, min_masks=1) for _ in range(400)])
    masking = Masking(prob=prob, length=length)
    mine = torch.stack([masking.row(frames, chance(seed)) for seed in range(400)])
    assert abs(mine.float().mean() - theirs.mean()) < 0.015
    # as many runs, too: spans that overlap or touch are one
    one, two = (np.mean([len(runs(row)) for row in torch.as_tensor(rows)]) for rows in (mine, theirs))
    assert abs(one - two) < 0.05 * two
    assert all(min(runs(row)) >= length for row in mine)
    middle = mine[:, 2 * length : -2 * length].float().mean(0)
    assert middle.std() < 0.05, "no place is preferred"


@pytest.mark.parametrize("frames", [1, 2, 5, 9, 10, 11])
def test_short_rows_are_hidden_without_faults(frames):
    for kind in ("spans", "starts", "blocks"):
        mask = Masking(prob=0.65, length=10, kind=kind).row(frames, chance(frames))
        assert mask.shape == (frames,) and mask.dtype == torch.bool
    assert Masking().row(frames, chance(0)).any()
    assert not len(Masking().row(0, chance(0)))


def test_starts_hide_what_their_probability_says():
    masking = Masking(kind="starts", prob=0.15, length=4)
    share = torch.stack([masking.row(400, chance(seed)) for seed in range(100)])[:, 10:].float().mean()
    assert abs(share - (1 - 0.85**4)) < 0.02


def test_blocks_leave_exactly_so_many_frames_visible_and_these_side_by_side():
    masking = Masking(kind="blocks", prob=0.5, length=5)
    rows = [masking.row(101, chance(seed)) for seed in range(50)]
    assert {int((~row).sum()) for row in rows} == {50}
    mean = np.mean([np.mean(runs(~row)) for row in rows])
    assert mean > 3, "scattered single frames would be runs of two on average"


@proves("eat", "mechanism")
@pytest.mark.parametrize("columns,bands,length", [(64, 8, 5), (7, 2, 3), (1, 4, 2)])
def test_squares_leave_blocks_of_patches_visible_in_both_directions(columns, bands, length):
    """As the authors' loops: blocks around random patches, what would lie outside at the edge instead; then as many
    patches too few or too many are changed."""
    masking, size = Masking(kind="squares", prob=0.8, length=length, adjust=0.07, bands=bands), columns * bands
    beside = []
    for seed in range(20):
        shown = ~masking.row(size, chance(seed))
        assert int(shown.sum()) == int(size * (1 - 0.8))
        slow, same = torch.zeros(columns, bands, dtype=torch.bool), chance(seed)
        for centre in torch.randint(size, (int(size * (1 - 0.8 + 0.07) / length**2),), generator=same).tolist():
            for i in range(length):
                for j in range(length):
                    column, band = centre // bands + i - length // 2, centre % bands + j - length // 2
                    slow[min(max(column, 0), columns - 1), min(max(band, 0), bands - 1)] = True
        slow = slow.flatten()
        more = int(slow.sum()) > int(shown.sum())
        assert (shown <= slow).all() if more else (slow <= shown).all(), "only taken from, or only added to"
        grid = shown.view(columns, bands)
        neighbours = (grid[1:] & grid[:-1]).sum() + (grid[:, 1:] & grid[:, :-1]).sum()
        beside.append(int(neighbours) / max(int(shown.sum()), 1))
    if columns > 8:
        assert np.mean(beside) > 1.0, "scattered patches would have 0.4 neighbours each"


def test_rows_do_not_depend_on_their_neighbours():
    masking = Masking(prob=0.5, length=4)
    both = mask_rows(masking, [50, 20], [chance(1), chance(2)])
    alone = mask_rows(masking, [20], [chance(2)])
    assert torch.equal(both[1, :20], alone[0]) and not both[1, 20:].any()


@pytest.mark.parametrize("wrong", [{"kind": "patches"}, {"prob": 0}, {"prob": 1.5}, {"length": 0}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(RecipeError, match="mask"):
        Masking(**wrong)


@proves("tera", "mechanism")
def test_spectra_are_altered_in_time_in_bands_and_in_magnitude():
    """As often as section III.B of the paper says, and only what is altered is asked for."""
    spectrum = torch.randn(210, 80, generator=chance(9)) + 5
    silenced = replaced = left = noisy = 0
    shares, widths = [], []
    for seed in range(400):
        altered, told = Alteration().row(spectrum, chance(seed))
        rows, bands = told.all(1), told.all(0)
        shares.append(float(rows.float().mean()))
        widths.append(int(bands.sum()))
        assert widths[-1] <= 16 and set(np.diff(np.flatnonzero(bands.numpy()))) <= {1}, "one block of bands"
        rest = ~rows[:, None] & ~bands[None]
        noise = not torch.equal(altered[rest], spectrum[rest])
        noisy += noise
        assert torch.equal(told, rows[:, None] | bands[None])
        if noise:
            assert abs(float((altered - spectrum)[rest].std()) - 0.2) < 0.02
            continue
        inside = altered[rows][:, ~bands]
        silenced += bool((inside == 0).all())
        left += torch.equal(inside, spectrum[rows][:, ~bands])
        replaced += not bool((inside == 0).all()) and not torch.equal(inside, spectrum[rows][:, ~bands])
        assert not altered[:, bands].any()
    total = silenced + replaced + left
    assert abs(silenced / total - 0.8) < 0.07 and 0.04 < replaced / total < 0.17 and 0.04 < left / total < 0.17
    assert 0.1 < noisy / 400 < 0.2
    assert 0.12 < np.mean(shares) < 0.15, "spans of seven, which may overlap"
    assert abs(np.mean(widths) - 8) < 0.7 and {0, 16} <= set(widths)


def test_mixing_lies_over_at_most_half_of_a_row_at_the_ratios_said():
    rows = torch.randn(60, 4000, generator=chance(4)) * torch.logspace(-2, 0, 60)[:, None]
    lengths = torch.full((60,), 4000)
    lengths[7] = 1000
    rows[7, 1000:] = 0
    found = mixed(rows, lengths, torch.arange(60), probability=0.5)
    touched = (found != rows).any(1)
    assert 0.3 < touched.float().mean() < 0.7
    for row in touched.nonzero()[:, 0].tolist():
        where = (found[row] != rows[row]).nonzero()[:, 0]
        assert int(where[-1] - where[0]) < int(lengths[row]) // 2, "at most half of it"
        added = (found - rows)[row, where]
        ratio = 10 * math.log10(float(rows[row, : lengths[row]].square().mean() / added.square().mean()))
        assert -5.5 < ratio < 20.5
    assert torch.equal(found[~touched], rows[~touched])
    assert torch.equal(mixed(rows, lengths, torch.arange(60), 0.5), found)
    assert not torch.equal(mixed(rows[:1], lengths[:1], torch.arange(1), 1.0), rows[:1]), "a row alone meets noise"
