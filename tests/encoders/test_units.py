"""Units: codes of frames, runs and durations, files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.encoders.mfcc import MFCCEncoder
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.units import UnitTokenizer, _Reservoir, deduplicate, expand
from vivavoce.errors import CheckpointError, DataError, RequestError

TINY_HUBERT = {
    "kind": "hubert", "conv_widths": [8, 8], "conv_kernels": [10, 4], "conv_strides": [8, 4], "width": 16, "layers": 2,
    "heads": 2, "hidden": 16, "position_kernel": 8, "position_groups": 2,
}


def chirps(count=6, samples=8000):
    generator = torch.Generator().manual_seed(5)
    at = torch.arange(samples) / 16000
    pitch = 200 + 3000 * torch.rand(count, 1, generator=generator)
    return [0.3 * torch.sin(6.28 * (p * at + 1500 * at**2)) for p in pitch]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=4))
def test_expand_undoes_deduplicate(rows):
    size = max(map(len, rows))
    codes = torch.zeros(len(rows), size, dtype=torch.int64)
    for row, values in enumerate(rows):
        codes[row, : len(values)] = torch.tensor(values, dtype=torch.int64)
    lengths = torch.tensor([len(values) for values in rows])
    found = deduplicate(codes, lengths)
    for row, values in enumerate(rows):
        runs = []
        for value in values:
            if runs and runs[-1][0] == value:
                runs[-1][1] += 1
            else:
                runs.append([value, 1])
        count = int(found.lengths[row])
        assert list(map(list, zip(found.units[row, :count].tolist(), found.durations[row, :count].tolist()))) == runs
        assert not found.units[row, count:].any() and not found.durations[row, count:].any()
    again, totals = expand(found.units, found.durations, found.lengths)
    assert torch.equal(totals, lengths) and torch.equal(again, codes)


def test_expand_repeats_vectors_and_skips_what_lasts_nothing():
    x = torch.randn(1, 3, 2)
    frames, lengths = expand(x, torch.tensor([[2, 0, 1]]))
    assert lengths.tolist() == [3] and torch.equal(frames[0], x[0, [0, 0, 2]])


@pytest.mark.parametrize("config,layer", [({"kind": "mfcc"}, None), (TINY_HUBERT, 1)])
def test_fit_encode_save_load(config, layer, tmp_path):
    encoder = build_encoder(config)
    waves = chirps()
    tokenizer = UnitTokenizer.fit(encoder, waves, 12, layer=layer, config=config, restarts=1)
    codes = tokenizer.encode(waves)
    assert codes.shape == (6, 1, encoder.frames(8000)) and codes.max() < 12 and len(codes.unique()) > 6
    units = tokenizer.units(waves)
    assert torch.equal(expand(units.units, units.durations, units.lengths)[0], codes[:, 0])
    assert units.lengths.max() < codes.shape[2]
    tokenizer.save(tmp_path / "units")
    again = UnitTokenizer.load(tmp_path / "units")
    assert torch.equal(again.encode(waves), codes)
    assert (again.frame_rate, again.sample_rate) == (encoder.frame_rate, 16000)
    assert (again.codebook_size, again.codebooks) == (12, 1)
    assert not tokenizer.ties(waves).any()


def test_batch_equals_single():
    tokenizer = UnitTokenizer.fit(MFCCEncoder(), chirps(), 16, restarts=1)
    waves = [wave[:size] for wave, size in zip(chirps(), (8000, 777, 5000, 400, 399, 0))]
    batch = tokenizer.encode(waves)
    for row, wave in enumerate(waves):
        alone = tokenizer.encode([wave])[0, 0]
        assert torch.equal(batch[row, 0, : len(alone)], alone) and not batch[row, 0, len(alone) :].any()
        assert len(alone) == tokenizer.frames(len(wave))


def test_same_seed_same_units():
    first, again, other = (UnitTokenizer.fit(MFCCEncoder(), chirps(), 8, seed=s, restarts=1).centers for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_reservoir_is_a_uniform_sample_in_bounded_memory():
    hits = torch.zeros(60)
    for seed in range(400):
        reservoir = _Reservoir(12, 1, seed)
        for part in torch.arange(60.0)[:, None].split(7):
            reservoir.add(part)
        kept = reservoir.rows()
        assert kept.shape == (12, 1) and len(kept.unique()) == 12
        hits[kept[:, 0].long()] += 1
    assert (hits / 400 - 0.2).abs().max() < 0.08
    few = _Reservoir(12, 1, 0)
    few.add(torch.ones(5, 1))
    assert few.rows().shape == (5, 1)


def test_centers_stay_float32():
    tokenizer = UnitTokenizer.fit(build_encoder(TINY_HUBERT), chirps(), 8, restarts=1)
    centers = tokenizer.centers.clone()
    half = torch.nn.Sequential(tokenizer).to(torch.bfloat16)[0]
    assert half.encoder.projection.weight.dtype == torch.bfloat16
    assert torch.equal(half.centers, centers) and half.encode(chirps()).max() < 8


def test_errors(tmp_path):
    with pytest.raises(DataError, match="larger corpus"):
        UnitTokenizer.fit(MFCCEncoder(), [torch.randn(800)], 100)
    with pytest.raises(CheckpointError, match="width 39"):
        UnitTokenizer(MFCCEncoder(), torch.zeros(5, 13))
    with pytest.raises(CheckpointError, match=r"units\.json is missing"):
        UnitTokenizer.load(tmp_path)
    with pytest.raises(RequestError, match="config"):
        UnitTokenizer(MFCCEncoder(), torch.zeros(5, 39)).save(tmp_path)
