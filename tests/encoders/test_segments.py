"""Segments of a signal: the cuts are the best there are, by exhaustive search; groups are Ward's."""

from itertools import combinations, pairwise

import pytest
import torch

from proves import proves
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.segment_units import SegmentUnits
from vivavoce.encoders.segments import Cut, best_sizes, cut_costs, pooled, scatter, traced
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import RecipeError
from vivavoce.quantizers.agglomerate import agglomerate
from vivavoce.tokenizers.units import UnitCodec

TINY = {
    "kind": "hubert", "conv_widths": [8, 8], "conv_kernels": [10, 32], "conv_strides": [10, 32], "width": 16,
    "layers": 1, "heads": 2, "hidden": 16, "position_kernel": 8, "position_groups": 2,
}  # fmt: skip
CUT = {"shortest": 2, "longest": 8, "spread": 0.4}


def every_cut(size, count, shortest, longest):
    for inner in combinations(range(1, size), count - 1):
        borders = [0, *inner, size]
        if all(shortest <= b - a <= longest for a, b in pairwise(borders)):
            yield borders


def spread_of(frames, borders):
    parts = [frames[a:b].double() for a, b in pairwise(borders)]
    return sum(float((part - part.mean(0)).square().mean(1).sum()) for part in parts)


def normalized_cut(similarity, borders):
    w, total = (similarity + similarity.t()).double(), 0.0
    for a, b in pairwise(borders):
        outside = torch.cat([w[a:b, :a], w[a:b, b:]], dim=1)
        total += float(outside.sum() / w[a:b].sum())
    return total


@proves("sylboost-syllablelm", "mechanism")
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_borders_have_the_smallest_spread_and_the_smallest_cut_of_all(count):
    frames = torch.randn(13, 4, generator=torch.Generator().manual_seed(count))
    similarity = torch.rand(13, 13, generator=torch.Generator().manual_seed(count))
    for costs, measure in (
        (scatter(frames, 13), lambda borders: spread_of(frames, borders)),
        (cut_costs(similarity, 13), lambda borders: normalized_cut(similarity, borders)),
    ):
        found = traced(best_sizes(costs, 5, 2), count)
        best = min(measure(borders) for borders in every_cut(13, count, 2, 13))
        assert found in list(every_cut(13, count, 2, 13)) and measure(found) == pytest.approx(best, rel=1e-9)


@proves("sylboost-syllablelm", "mechanism")
def test_there_are_as_many_segments_as_the_spread_asks_for():
    """The most segments, of those that a binary search meets, of which three quarters' spread exceeds the limit."""
    level = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).repeat_interleave(10, 0)
    frames = level + 0.05 * torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    for spread in (1.0, 0.02, 0.001, 0.0):
        cut = Cut(fastest=10, shortest=2, longest=30, spread=spread)
        borders = cut.borders(frames, 50.0)
        low, high, best = 4, 12, 4
        while low <= high:
            middle = (low + high) // 2
            tried = traced(best_sizes(scatter(frames, 30), 12, 2), middle)
            spreads = [float((frames[a:b] - frames[a:b].mean(0)).square().mean()) for a, b in pairwise(tried)]
            if float(torch.tensor(spreads).quantile(0.75)) > spread:
                best, low = middle, middle + 1
            else:
                high = middle - 1
        assert len(borders) - 1 == best
    assert set(range(0, 61, 10)) <= set(Cut(shortest=2, longest=30, spread=0.001).borders(frames, 50.0))
    assert len(Cut(spread=0.0).borders(frames, 50.0)) - 1 == 12, "never more than ten a second"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 35, 36, 71, 200])
def test_any_length_can_be_cut(size):
    frames = torch.randn(size, 3, generator=torch.Generator().manual_seed(size))
    for cut in (Cut(), Cut(fastest=0.1, spread=0.0), Cut(fastest=50.0, shortest=1, longest=2)):
        borders = cut.borders(frames, 50.0)
        assert borders[0] == 0 and borders[-1] == size and borders == sorted(set(borders))
        if size >= cut.shortest:
            assert all(cut.shortest <= b - a <= cut.longest for a, b in pairwise(borders))
    with pytest.raises(RecipeError, match="half of longest"):
        Cut(shortest=4, longest=6)


def test_a_segments_vector_is_its_inner_mean_normed():
    frames = torch.randn(9, 6)
    found = pooled(frames, [0, 4, 6, 9])
    for vector, (a, b) in zip(found, [(1, 3), (4, 6), (7, 8)]):
        mean = frames[a:b].mean(0)
        torch.testing.assert_close(vector, (mean - mean.mean()) / mean.std())
    assert pooled(frames[:0], [0]).shape == (0, 6)


@pytest.mark.parametrize("groups", [1, 4, 17, 40])
def test_groups_are_scipys_by_wards_rule(groups):
    from scipy.cluster.hierarchy import fcluster, linkage

    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(groups))
    mine = agglomerate(points, groups).tolist()
    theirs = fcluster(linkage(points.numpy(), "ward"), groups, "maxclust").tolist()
    assert len(set(zip(mine, theirs))) == len(set(mine)) == len(set(theirs)) == groups
    assert [mine.index(number) for number in range(groups)] == sorted(mine.index(number) for number in range(groups))


@pytest.fixture(scope="module")
def units():
    torch.manual_seed(0)
    encoder = build_encoder(TINY).eval()
    made = SegmentUnits(encoder, torch.randn(20, 16), torch.arange(20) % 7, 1, TINY, cut=CUT)
    chance = torch.Generator().manual_seed(3)
    vectors = torch.cat([made.points(encoder.features([wave], layer=1).values[0]) for wave in signals(chance)])
    made.take(vectors[:20], made.scale)
    return made


def signals(chance, count=4):
    tones = [torch.sin(torch.arange(16000) * 0.02 * (1 + torch.rand(40, generator=chance).repeat_interleave(400)))
             for _ in range(count)]  # fmt: skip
    return [0.3 * tone[None] for tone in tones]


@proves("sylboost-syllablelm", "mechanism")
def test_a_unit_is_the_group_of_the_nearest_center_for_all_of_a_segment(units):
    wave = signals(torch.Generator().manual_seed(9), 1)[0]
    frames = units.encoder.features([wave], layer=1).values[0]
    borders = Cut(**CUT).borders(frames, 50.0)
    assert 5 < len(borders) < 12 and torch.equal(units.groups, agglomerate(units.centers, 7))
    codes = units.encode([wave])[0, 0]
    for a, b in pairwise(borders):
        vector = pooled(frames[a:b], [0, b - a])[0]
        center = min(range(20), key=lambda i: float((vector - units.centers[i]).norm()))
        assert codes[a:b].tolist() == [int(units.groups[center])] * (b - a)
    runs = units.units([wave])
    assert int(runs.durations.sum()) == len(codes) == units.frames(16000) and int(runs.lengths) <= len(borders) - 1
    assert units.codebook_size == 7 and int(codes.max()) < 7


def test_segments_are_the_same_in_batches_pieces_and_files(units, tmp_path, monkeypatch):
    waves = signals(torch.Generator().manual_seed(4))
    batch, lengths = torch.stack(waves), torch.tensor([16000, 9000, 100, 16000])
    together = units.encode(batch, lengths)
    for row, size in enumerate(lengths.tolist()):
        alone = units.encode(batch[row : row + 1, :, :size])
        assert torch.equal(together[row : row + 1, :, : alone.shape[2]], alone)
        assert not together[row, :, alone.shape[2] :].any()
    units.save(tmp_path)
    again = UnitTokenizer.load(tmp_path)
    assert isinstance(again, SegmentUnits) and again.cut == units.cut and torch.equal(again.groups, units.groups)
    assert torch.equal(again.encode(batch, lengths), together)
    monkeypatch.setattr(type(units.encoder), "piece", 0.3)
    monkeypatch.setattr(type(units.encoder), "around", 0.1)
    codec, whole = UnitCodec(units), units.encode(batch)
    state, parts = codec.encoder_state(4), []
    for part in batch.split(1777, dim=2):
        codes, state = codec.encode_step(part, state)
        parts.append(codes[..., : int(state.emitted[0])])
    codes, state = codec.encode_flush(state)
    assert torch.equal(torch.cat([*parts, codes[..., : int(state.emitted[0])]], dim=2), whole)


def test_what_segments_cannot_be_made_of_is_said():
    with pytest.raises(RecipeError, match="frame by frame"):
        encoder = build_encoder({"kind": "log_mel"})
        SegmentUnits(encoder, torch.zeros(3, encoder.width), torch.arange(3))
    with pytest.raises(RecipeError, match="spraed"):
        SegmentUnits(build_encoder(TINY), torch.zeros(3, 16), torch.arange(3), cut={"spraed": 1})
