"""Units on recorded digits: they know more about what is said than chance does."""

import json

import pytest
import torch

from vivavoce.audio import read
from vivavoce.encoders.mfcc import MFCCEncoder
from vivavoce.encoders.units import UnitTokenizer


def clips(pack, speakers, takes):
    rows = [json.loads(line) for line in (pack / "manifests" / "fsdd.jsonl").read_text().splitlines()]
    for row in rows:
        digit, speaker, take = row["id"].split("/")[1].split("_")
        if speaker in speakers and int(take) in takes:
            audio = read(pack / row["audio"]).mono().resample(16000)
            yield int(digit), torch.from_numpy(audio.samples[0])


def purity(codes, labels, size=50):
    """Share of frames that carry the commonest label of their unit."""
    table = torch.zeros(size, 10)
    table.index_put_((codes, labels), torch.ones(len(codes)), accumulate=True)
    return (table.max(1).values.sum() / len(codes)).item()


@pytest.mark.parametrize("normalize", [False, True])
def test_mfcc_units_know_the_digit(pack, normalize):
    train = list(clips(pack, {"lucas", "nicolas", "theo"}, range(5, 9)))
    test = list(clips(pack, {"lucas", "nicolas", "theo"}, range(2)))
    assert len(train) == 120 and len(test) == 60
    tokenizer = UnitTokenizer.fit(MFCCEncoder(normalize=normalize), [wave for _, wave in train], 50, restarts=2)
    waves = [wave for _, wave in test]
    codes = tokenizer.encode(waves)[:, 0]
    counts = torch.tensor([tokenizer.frames(len(wave)) for wave in waves])
    inside = torch.arange(codes.shape[1])[None] < counts[:, None]
    digits = torch.tensor([digit for digit, _ in test])
    flat = codes[inside]
    assert len(flat.unique()) > 40
    found = purity(flat, digits[:, None].expand_as(codes)[inside])
    shuffled = [purity(flat, digits[torch.randperm(60)][:, None].expand_as(codes)[inside]) for _ in range(20)]
    assert found > max(shuffled) + 0.03, f"{found:.3f} against {max(shuffled):.3f} by chance"
