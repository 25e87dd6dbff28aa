"""Codes at rest: what goes in comes out, in as few bits as it should; damage is noticed and located."""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivavoce.errors import DataError
from vivavoce.tokenizers.blocks import Coded, joined
from vivavoce.tokenizers.compact_file import (
    CodesHeader,
    CodesReader,
    CodesWriter,
    Damage,
    code_bits,
    entropy_coded,
    read_codes,
)  # fmt: skip
from vivavoce.tokenizers.entropy import TOTAL, Table

MALFORMED = 10_000 if os.environ.get("VIVAVOCE_LONG") == "1" else 200


def header(sizes, **more) -> CodesHeader:
    return CodesHeader("some", "abc", 24000, 0, 0, list(sizes), **more)


def blocks_of(sizes, counts, ratios, seed, skew=1.0, scales=False) -> list[Coded]:
    """Random codes in blocks of `counts` frames; skew > 1: the first codes of a codebook are more frequent."""
    rng = np.random.default_rng(seed)
    made = []
    for count in counts:
        levels = [(size * rng.random(count * r) ** skew).astype(np.int64) for size, r in zip(sizes, ratios)]
        made.append(Coded(count, levels, scales=[float(np.float32(v)) for v in rng.random(min(2, count) * scales)]))
    return made


def write(path, told, blocks, samples=None):
    with path.open("wb") as file:
        writer = CodesWriter(file, told)
        for block in blocks:
            writer.add(block)
        return writer.finish(sum(block.frames for block in blocks) * 1920 if samples is None else samples)


def same(one: Coded, other: Coded) -> bool:
    pairs = zip(one.levels, other.levels, strict=True)
    return one.frames == other.frames and all(map(np.array_equal, *zip(*pairs))) and one.scales == other.scales


@given(
    st.lists(st.tuples(st.integers(1, 70000), st.integers(1, 4)), min_size=1, max_size=9),
    st.lists(st.integers(1, 40), max_size=4), st.integers(0, 99), st.booleans(), st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_goes_in_comes_out(tmp_path_factory, levels, counts, seed, scaled, entropy):
    sizes, ratios = map(list, zip(*levels))
    path = tmp_path_factory.mktemp("codes") / "a.vvc"
    blocks = blocks_of(sizes, counts, ratios, seed, 3.0, scaled)
    size = write(path, header(sizes, ratios=ratios, scaled=scaled), blocks, 12345)
    assert size == path.stat().st_size
    if entropy:
        again = path.with_name("b.vvc")
        with again.open("wb") as file:
            assert entropy_coded(path, file) == file.tell()
        assert again.stat().st_size <= path.stat().st_size + 16
        path = again
    reader = CodesReader(path)
    assert reader.header.samples == 12345 and reader.header.frames == sum(counts) and reader.header.ratios == ratios
    found = list(reader)
    assert len(found) == len(blocks) and all(map(same, found, blocks))


def test_known_bits(tmp_path):
    """Codebooks of 4 and 3 entries: two bits each; 0 1 2 3 | 2 1 0 2 is 00011011 10010010."""
    write(tmp_path / "a", header([4, 3]), [Coded(4, [np.array([0, 1, 2, 3]), np.array([2, 1, 0, 2])])])
    assert (tmp_path / "a").read_bytes()[-2:] == bytes([0b00011011, 0b10010010])
    assert [code_bits(size) for size in (1, 2, 3, 256, 257, 2048)] == [1, 1, 2, 8, 9, 11]


def test_frequencies_are_integers_that_sum_up():
    rng = np.random.default_rng(0)
    for counts in (np.array([0, 0]), np.array([10**12, 0, 1]), rng.integers(0, 9, 1024) ** 4, np.zeros(16384, int)):
        table = Table.counted(counts)
        assert table.frequencies.dtype == np.int64 and table.frequencies.min() >= 1
        assert table.frequencies.sum() == TOTAL
        assert np.array_equal(Table.of(table.plain, len(counts)).frequencies, table.frequencies)
    assert Table(np.array([64, 60, 0], np.uint8)).frequencies.tolist() == [43690, 21845, 1]


def test_the_coder_s_bytes_are_always_the_same():
    """A file of today must be read by every later version of the package that codes."""
    table = Table.counted(np.array([100, 50, 20, 5, 0, 1, 1, 1]))
    codes = np.array([0, 0, 1, 0, 2, 7, 1, 0, 0, 3, 4, 0, 1, 1, 2, 0, 5])
    assert table.encode(codes).hex() == GOLDEN
    assert np.array_equal(table.decode(bytes.fromhex(GOLDEN), len(codes)), codes)


GOLDEN = "371c233abe6b0852"


def test_entropy_coding_is_near_the_entropy(tmp_path):
    sizes, counts = [1024] * 4, [500] * 40
    blocks = blocks_of(sizes, counts, [1] * 4, 0, 5.0)
    size = write(tmp_path / "a", header(sizes), blocks)
    with (tmp_path / "b").open("wb") as file:
        smaller = entropy_coded(tmp_path / "a", file)
    codes = joined(blocks).codes
    shares = [np.bincount(level, minlength=1024) / len(level) for level in codes]
    bits = sum(-float((p[p > 0] * np.log2(p[p > 0])).sum()) for p in shares) * codes.shape[1]
    table = 4 * 4 / 3 * 1024  # bytes that the model itself takes
    assert bits / 8 < smaller < 1.03 * bits / 8 + table + 2000 and smaller < 0.92 * size
    assert np.array_equal(read_codes(tmp_path / "b")[0], codes)
    flat = blocks_of([1024], [300], [1], 0)  # what has no pattern stays as it is
    size = write(tmp_path / "c", header([1024]), flat)
    with (tmp_path / "d").open("wb") as file:
        assert entropy_coded(tmp_path / "c", file) == size
    assert CodesReader(tmp_path / "d").header.model is None


@pytest.fixture(params=[False, True], ids=["plain", "entropy"])
def file(request, tmp_path):
    """Ten blocks of 100 frames, 8 s each; the blocks."""
    blocks = blocks_of([256, 64, 3000], [100] * 10, [1, 2, 4], 0, 4.0)
    write(tmp_path / "plain.vvc", header([256, 64, 3000], ratios=[1, 2, 4]), blocks)
    if not request.param:
        return tmp_path / "plain.vvc", blocks
    with (tmp_path / "coded.vvc").open("wb") as coded:
        entropy_coded(tmp_path / "plain.vvc", coded)
    assert CodesReader(tmp_path / "coded.vvc").header.model is not None
    return tmp_path / "coded.vvc", blocks


def test_a_file_that_is_cut_is_read_up_to_the_cut(file, tmp_path):
    path, blocks = file
    content = path.read_bytes()
    begin = len(content) - sum(len(b) for b in _blocks(content))
    for size in (begin, begin + 7, len(content) * 2 // 3, len(content) - 1):
        path.write_bytes(content[:size])
        damage = Damage()
        found = list(CodesReader(path, damage))
        assert all(map(same, found, blocks)) and len(found) < 10 and not damage.found
        assert f"{100 * len(found)} of 1000 frames ({8 * len(found):.2f} s of 80.00 s)" in damage.cut
        with pytest.raises(DataError, match="cut short"):
            list(CodesReader(path))
    assert len(found) == 9
    for size in (0, 3, 7, begin - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"not a file of codes|header cannot be read"):
            CodesReader(path)


def _blocks(content: bytes) -> list[bytes]:
    """The blocks of a file, by their lengths."""
    at, found = 12 + int.from_bytes(content[4:8], "little"), []
    while at < len(content):
        scales, size = (int.from_bytes(content[at + k : at + k + 4], "little") for k in (4, 8))
        found.append(content[at : at + 16 + 4 * scales + size])
        at += len(found[-1])
    return found


def test_damage_is_located_and_the_rest_is_read(file):
    path, blocks = file
    content = bytearray(path.read_bytes())
    parts = _blocks(bytes(content))
    at = len(content) - sum(map(len, parts[4:])) + 40  # inside block 4
    content[at] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"damaged in frames 400 to 499 \(32\.00 s to 40\.00 s\)"):
        list(CodesReader(path))
    damage = Damage()
    found = list(CodesReader(path, damage))
    assert len(found) == 10 and len(damage.found) == 1 and not damage.cut
    assert all(same(mine, block) for n, (mine, block) in enumerate(zip(found, blocks)) if n != 4)
    assert not any(level.any() for level in found[4].levels)


def test_what_cannot_be_written_is_refused(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        writer = CodesWriter(file, header([4, 3]))
        with pytest.raises(DataError, match="codebook 1"):
            writer.add(Coded(2, [np.array([0, 1]), np.array([0, 3])]))
        with pytest.raises(DataError, match="codebook 0"):
            writer.add(Coded(2, [np.array([0, -1]), np.array([0, 0])]))
        with pytest.raises(DataError, match="for 2 frames"):
            writer.add(Coded(2, [np.array([0, 1]), np.array([0])]))
    with pytest.raises(DataError, match="no such file"):
        read_codes(tmp_path / "none.vvc")
    (tmp_path / "old").write_bytes(b"VVC1" + bytes(90))
    with pytest.raises(DataError, match="older version"):
        read_codes(tmp_path / "old")


def test_malformed_files_are_refused_or_read(tmp_path):
    """Bytes changed, cut, doubled, put in; of the header too, with a CRC that fits: an error of ours, or codes that the
    header allows."""
    import zlib

    rng = np.random.default_rng(0)
    blocks = blocks_of([16, 300], [20] * 3, [1, 1], 1, 3.0, scales=True)
    write(tmp_path / "plain", header([16, 300], scaled=True), blocks)
    model = [Table.counted(np.bincount(joined(blocks).levels[n], minlength=s)).plain for n, s in enumerate((16, 300))]
    write(tmp_path / "coded", header([16, 300], scaled=True, model=model), blocks)
    kinds = [(tmp_path / name).read_bytes() for name in ("plain", "coded")]
    path, refused, read = tmp_path / "x.vvc", 0, 0
    for number in range(MALFORMED):
        content = bytearray(kinds[number % 2])
        end = 8 + int.from_bytes(content[4:8], "little")
        low, high = ((8, end), (end + 4, len(content)), (0, len(content)))[number // 2 % 3]
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(low, min(high, len(content)) or 1))
            match int(rng.integers(5)):
                case 0:
                    content[at : at + 1] = bytes([int(rng.integers(256))])
                case 1:
                    del content[at : at + int(rng.integers(1, 9))]
                case 2:
                    content[at:at] = rng.bytes(int(rng.integers(1, 9)))
                case 3:
                    content[at : at + 4] = int(rng.integers(2**32)).to_bytes(4, "little")
                case 4:
                    content[at : at + 1] = str(int(rng.integers(10))).encode()
        if number // 2 % 3 == 0:  # the header's CRC fits
            end = 8 + int.from_bytes(content[4:8], "little")
            content[end : end + 4] = zlib.crc32(bytes(content[8:end])).to_bytes(4, "little")
        path.write_bytes(bytes(content))
        try:
            damage = Damage()
            reader = CodesReader(path, damage)
            for block in reader:
                for level, size, count in zip(block.levels, reader.header.sizes, reader.header.counts, strict=True):
                    assert len(level) == block.frames * count and level.min() >= 0 and level.max() < size
            read += 1
            assert damage.found or damage.cut or number // 2 % 3 != 1 or bytes(content) == kinds[number % 2]
        except DataError as error:
            assert "x.vvc" in str(error)
            refused += 1
    assert refused > MALFORMED // 5 and read > MALFORMED // 5
    assert replace(reader.header, samples=0).samples == 0
