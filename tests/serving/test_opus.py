"""Ogg/Opus streams: any cutting, any damage. What is decoded is compared with libopus' own undisturbed answer."""

import io
import os
import types
from fractions import Fraction

import numpy as np
import pytest
import sphn
from hypothesis import given, settings
from hypothesis import strategies as st

import vivavoce
from vivavoce.serving import opus
from vivavoce.serving.opus import MOST_PAGE, OggOpusIn, OggOpusOut, OggPackets, page_of, samples_of_packet

RATE, FRAME, PACKET = 24_000, 1920, 960
LONG = os.environ.get("VIVAVOCE_LONG") == "1"
SETTINGS = settings(max_examples=40)


def sweep(seconds, rate=RATE):
    """A sweep with a click every 100 ms: every moment of it is unlike every other."""
    time = np.arange(int(seconds * rate)) / rate
    sound = 0.3 * np.sin(2 * np.pi * (200 * time + 300 * time**2))
    sound[:: rate // 10] += 0.3
    return sound.astype(np.float32)


def pages_of(data):
    """Ogg pages, one after another, no damage expected."""
    pages = []
    while data:
        end = 27 + data[26] + sum(data[27 : 27 + data[26]])
        pages.append(data[:end])
        data = data[end:]
    return pages


def packet_in(page):
    return page[27 + page[26] :]


def decoded(data, rate=RATE, cut=None):
    """(samples, reader) of the bytes, given in pieces of `cut`."""
    reader = OggOpusIn(rate)
    cut = cut or max(1, len(data))
    pieces = [reader.decode(data[at : at + cut]) for at in range(0, len(data), cut)]
    return np.concatenate([np.zeros(0, np.float32), *pieces]), reader


@pytest.fixture(scope="module")
def stream():
    """2.4 s as they are sent: two headers, then 60 pages."""
    writer = OggOpusOut(RATE)
    return b"".join(writer.encode(block) for block in sweep(2.4).reshape(-1, FRAME))


@pytest.fixture(scope="module")
def clean(stream):
    return decoded(stream)[0]


def lag_and_likeness(sound, reference):
    """By how many samples `sound` is later than `reference`, and how alike they are then (cosine)."""
    size = len(reference) + len(sound)
    product = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(reference, size)), size)
    lag = int(np.argmax(product[: len(sound)]))
    kept = sound[lag : lag + len(reference)]
    ours = reference[: len(kept)]
    return lag, float(kept @ ours / (np.linalg.norm(kept) * np.linalg.norm(ours)))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 48_000])
def test_what_goes_out_comes_in_again_at_any_rate(rate):
    sound = sweep(1.5, rate)
    writer, reader = OggOpusOut(rate), OggOpusIn(rate)
    heard = [reader.decode(writer.encode(block)) for block in np.array_split(sound, 19)]
    lag, likeness = lag_and_likeness(np.concatenate(heard), sound[: rate // 2])
    assert likeness > 0.97 and lag / rate < 0.008  # the codec's own 6.5 ms; no resampler adds any
    assert reader.lost_bytes == reader.lost_packets == 0


def test_the_samples_are_those_that_libopus_gives(stream, clean):
    assert np.array_equal(clean, sphn.OpusStreamReader(RATE).append_bytes(stream))
    assert len(clean) == 60 * PACKET


def by_sphn(monkeypatch):
    """2.4 s as sphn writes them, where PyAV is not installed."""
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    return OggOpusOut(RATE).encode(sweep(2.4))


def test_pages_are_written_as_sphn_writes_them(monkeypatch, stream):
    for written, serial in ((by_sphn(monkeypatch), 42), (stream, 0)):
        pages = pages_of(written)
        assert len(pages) == 62
        for number, page in enumerate(pages):
            granule = int.from_bytes(page[6:14], "little")
            assert page_of([packet_in(page)], granule, serial, number, page[5]) == page  # the checksum too
            assert granule == max(0, number - 1) * 2 * PACKET


def test_both_encoders_say_the_same_and_how_late(monkeypatch, stream):
    other, sound = by_sphn(monkeypatch), sweep(2.4)
    for written, most in ((other, 0.0068), (stream, 0.0027)):
        lag, likeness = lag_and_likeness(decoded(written)[0], sound[: 2 * RATE])
        assert likeness > 0.97 and lag / RATE < most
    skip = int.from_bytes(packet_in(pages_of(stream)[0])[10:12], "little") / 48_000
    assert abs(skip - 0.0025) < 1e-4  # what a player leaves out is what the encoder adds


@SETTINGS
@given(cuts=st.lists(st.integers(1, 2400), max_size=12))
def test_the_cuts_of_what_is_sent_do_not_matter(cuts):
    sound, whole, writer = sweep(0.8), OggOpusOut(RATE), OggOpusOut(RATE)
    ends = [*np.cumsum(cuts).clip(max=len(sound)), len(sound)]
    pieces = [writer.encode(sound[begin:end]) for begin, end in zip([0, *ends], ends)]
    assert b"".join(pieces) == whole.encode(sound)


@SETTINGS
@given(data=st.data())
def test_the_cuts_of_what_comes_do_not_matter(stream, clean, data):
    ends = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=30)))
    reader = OggOpusIn(RATE)
    pieces = [reader.decode(stream[begin:end]) for begin, end in zip([0, *ends], [*ends, len(stream)])]
    assert np.array_equal(np.concatenate(pieces), clean)
    assert reader.heard == 60 and reader.lost_bytes == 0


@pytest.mark.parametrize("cut", [1, 3, 28, 300])
def test_byte_by_byte(stream, clean, cut):
    assert np.array_equal(decoded(stream, cut=cut)[0], clean)


def damaged(page, how, at, noise):
    """A page after an accident, and how many packets that costs."""
    if how == "flip":
        spoiled = bytearray(page)
        spoiled[at % len(page)] ^= 1 + noise[0] % 255
        return bytes(spoiled), 1
    if how == "truncate":
        return page[: at % len(page)], 1
    if how == "replace":
        return noise, 1
    if how == "prepend":
        return noise + page, 0
    return noise + b"OggS" + noise + page, 0  # a false beginning


@settings(max_examples=120 if LONG else 30)
@given(
    number=st.integers(2, 60), how=st.sampled_from(["flip", "truncate", "replace", "prepend", "pretend"]),
    at=st.integers(0, 10_000), noise=st.binary(min_size=1, max_size=400), cut=st.integers(1, 4000),
)  # fmt: skip
def test_one_bad_page_costs_that_page(stream, clean, number, how, at, noise, cut):
    pages = pages_of(stream)
    pages[number], cost = damaged(pages[number], how, at, noise)
    # A damaged length says that more is to come: pages after it prove that wrong as soon as one of them is whole.
    sound, reader = decoded(b"".join(pages), cut=cut)
    assert reader.heard == 60 - cost and len(sound) == (60 - cost) * PACKET
    before = (number - 2) * PACKET
    assert np.array_equal(sound[:before], clean[:before])
    tail = 10 * PACKET
    if number < 45:  # libopus finds its way back
        ours, theirs = sound[-tail:], clean[-tail:]
        assert ours @ theirs > 0.98 * np.linalg.norm(ours) * np.linalg.norm(theirs)


def test_a_page_of_a_wrong_length_does_not_hold_up_the_next(stream):
    pages = pages_of(stream)
    spoiled = bytearray(pages[10])
    spoiled[26:28] = b"\xff\xff"  # 255 segments: up to 65 kB, 13 s of sound
    reader = OggOpusIn(RATE)
    reader.decode(b"".join(pages[:10]) + bytes(spoiled))
    assert len(reader.decode(pages[11])) == PACKET


def test_what_would_silence_sphn_is_survived(stream):
    plain = sphn.OpusStreamReader(RATE)
    pages = pages_of(stream)
    plain.append_bytes(b"".join(pages[:5]))
    for rest in (b"no page at all" * 10, *pages[5:8]):
        with pytest.raises(ValueError, match="capture pattern"):
            plain.append_bytes(rest)
    sound, reader = decoded(b"".join(pages[:5]) + b"no page at all" * 10 + b"".join(pages[5:]))
    assert reader.heard == 60 and reader.lost_bytes == 140 and len(sound) == 60 * PACKET


def test_one_may_join_in_the_middle_of_a_page(stream, clean):
    begun = len(b"".join(pages_of(stream)[:20])) + 11
    sound, reader = decoded(stream[begun:])
    assert reader.heard == 62 - 21 and len(sound) == reader.heard * PACKET
    ours, theirs = sound[-RATE:], clean[-RATE:]
    assert ours @ theirs > 0.98 * np.linalg.norm(ours) * np.linalg.norm(theirs)


def test_headers_may_be_late_repeated_or_missing(stream):
    pages = pages_of(stream)
    for order in (pages[2:], pages[2:10] + pages[:2] + pages[10:], pages[:2] * 3 + pages[2:]):
        sound, reader = decoded(b"".join(order))
        assert reader.heard == 60 and len(sound) == 60 * PACKET and reader.lost_packets == 0


def test_another_stream_may_follow(stream):
    """A client that begins anew: another serial number, with or without its headers."""
    def anew(page):
        return page_of([packet_in(page)], serial=7, sequence=int.from_bytes(page[18:22], "little"), flags=page[5])

    pages = [anew(page) for page in pages_of(stream)]
    assert decoded(stream + b"".join(pages))[1].heard == 120
    assert decoded(stream + b"".join(pages[2:]))[1].heard == 120


def laced(packets, laces_a_page):
    """An Ogg stream in pages of so many laces: packets share pages and go over them, as RFC 3533 allows."""
    laces = []
    for packet in packets:
        cuts = [packet[at : at + 255] for at in range(0, len(packet), 255)]
        laces += cuts if len(packet) % 255 else [*cuts, b""]
    data = b""
    for sequence, at in enumerate(range(0, len(laces), laces_a_page)):
        chunk = laces[at : at + laces_a_page]
        flags = (2 if at == 0 else 0) | (1 if at and len(laces[at - 1]) == 255 else 0)
        head = b"OggS\0" + bytes([flags]) + bytes(12) + sequence.to_bytes(4, "little")
        body = bytes([len(chunk), *map(len, chunk)]) + b"".join(chunk)
        data += head + opus.checksum(head + bytes(4) + body) + body
    return data


def encoded(seconds, milliseconds, channels=1, rate=RATE, bits=96_000):
    """Packets as ffmpeg's libopus makes them, of another length than sphn's."""
    av = pytest.importorskip("av")
    codec = av.CodecContext.create("libopus", "w")
    codec.sample_rate, codec.format, codec.bit_rate = rate, "flt", bits
    codec.layout, codec.time_base = ("mono", "stereo")[channels - 1], Fraction(1, rate)
    codec.options = {"frame_duration": str(milliseconds), "application": "audio"}
    codec.open()
    sound, size, packets = sweep(seconds, rate), codec.frame_size, []
    for at in range(0, len(sound) - size + 1, size):
        frame = av.AudioFrame.from_ndarray(np.repeat(sound[at : at + size], channels)[None], "flt", codec.layout.name)
        frame.sample_rate, frame.pts = rate, at
        packets += [bytes(packet) for packet in codec.encode(frame)]
    return packets


@pytest.mark.parametrize("milliseconds", [2.5, 5, 10, 20, 40, 60])
def test_packets_of_every_length(milliseconds):
    packets = encoded(1.2, milliseconds)
    assert {samples_of_packet(packet) for packet in packets} == {milliseconds * 48}
    sound, _ = decoded(b"".join(page_of([packet], sequence=i) for i, packet in enumerate(packets)))
    lag, likeness = lag_and_likeness(sound, sweep(0.8))
    assert likeness > 0.97 and lag < 0.015 * RATE


@pytest.mark.parametrize("laces", [1, 2, 3, 5, 40, 255])
def test_packets_that_share_pages_and_go_over_them(laces):
    packets = [opus.opus_head(RATE), opus.opus_tags(), *encoded(1.0, 60)]
    assert max(map(len, packets)) > 2 * 255
    expected, _ = decoded(b"".join(page_of([packet], sequence=i) for i, packet in enumerate(packets)))
    sound, reader = decoded(laced(packets, laces), cut=100)
    assert np.array_equal(sound, expected) and reader.heard == len(packets) - 2


def test_a_packet_whose_middle_is_lost_is_dropped_alone():
    packets = encoded(1.0, 60)
    pages = pages_of(laced(packets, 1))
    first = next(i for i, page in enumerate(pages) if page[5] & 1)  # goes on from the page before
    reader = decoded(b"".join(pages[:first] + pages[first + 1 :]))[1]
    assert reader.heard == len(packets) - 1


def test_stereo_is_mixed_down_and_files_of_ffmpeg_are_read():
    av = pytest.importorskip("av")
    made = io.BytesIO()
    with av.open(made, "w", format="ogg") as file:
        out = file.add_stream("libopus", rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.repeat(sweep(1.2, 48_000), 2)[None], "flt", "stereo")
        frame.sample_rate = 48_000
        file.mux([*out.encode(frame), *out.encode(None)])
    sound, reader = decoded(made.getvalue(), cut=77)
    assert len(pages_of(made.getvalue())) < reader.heard / 4  # many packets a page
    lag, likeness = lag_and_likeness(sound, sweep(0.8))
    assert likeness > 0.97 and lag < 0.02 * RATE and reader.lost_packets == 0


def test_a_stream_of_something_else_is_not_played(stream):
    vorbis = page_of([b"\x01vorbis" + bytes(23)], serial=3, flags=2) + page_of([bytes([120]) * 40] * 5, serial=3)
    sound, reader = decoded(vorbis)
    assert not len(sound) and reader.lost_packets == 6 and reader.heard == 0
    assert len(reader.decode(stream)) == 60 * PACKET  # and then one that is Opus
    surround = opus.opus_head(RATE, 6)[:18] + b"\x01\x04\x02" + bytes(range(6))
    newer = b"OpusHead\x11" + opus.opus_head(RATE)[9:]
    for head in (surround, newer, b"OpusHead\x01"):
        sound, reader = decoded(page_of([head], flags=2) + b"".join(pages_of(stream)[2:]))
        assert not len(sound) and reader.lost_packets == 60


def test_bad_packets_in_good_pages_are_dropped(stream):
    pages = pages_of(stream)
    bad = [b"", b"\xff", b"\x03", b"\x03\x00", b"\xfb\x31" + b"a" * 100, bytes(20) * 100, b"\x02\xff"]
    sound, reader = decoded(b"".join([*pages[:30], page_of(bad), *pages[30:]]))
    assert reader.heard == 60 and reader.lost_packets == len(bad) and len(sound) == 60 * PACKET


def test_which_packets_are_opus_is_what_libopus_says():
    dice, reader = np.random.default_rng(0), sphn.OpusStreamReader(48_000)
    found = 0
    for _ in range(3000):
        packet = dice.integers(0, 256, dice.integers(1, 60), dtype=np.uint8).tobytes()
        try:
            expected = len(reader.append_bytes(page_of([packet])))
        except ValueError:
            expected = 0
        assert samples_of_packet(packet) == expected, packet.hex()
        found += expected > 0
    assert found > 1000
    padded = bytes([3 | 4 << 3, 64 | 1, 255, 255, 3]) + bytes(10 + 254 + 254 + 3)
    assert samples_of_packet(padded) == 480 and samples_of_packet(padded[:-20]) == 0


def test_a_few_bytes_cannot_become_minutes():
    bomb = page_of([bytes([11 << 3 | 3, 2])] * 255)  # 120 ms in two bytes
    reader = OggOpusIn(RATE)
    assert len(reader.decode(bomb * 20, most=2.0)) == 2 * RATE - 2 * RATE % 2880
    assert reader.heard == 16 and reader.lost_packets == 20 * 255 - 16
    assert len(reader.decode(bomb, most=0.0)) == 0


HEADER = b"OggS\0" + bytes(21)
FLOODS = {
    "noise": np.random.default_rng(0).integers(0, 256, 600_000, dtype=np.uint8).tobytes(),
    "false pages": (HEADER + b"\xff" * 5) * 15_000,
    "false beginnings": b"OggS\0" * 100_000,
    "one endless page": HEADER + b"\xff" * 256 + bytes(600_000),
    "an endless packet": laced([bytes(600_000)], 255),
}


@pytest.mark.parametrize("kind", FLOODS)
@pytest.mark.parametrize("cut", [333, 10**9])
def test_floods_cost_neither_memory_nor_time(monkeypatch, stream, kind, cut):
    checked, data = [], FLOODS[kind]
    plain = opus.checksum
    monkeypatch.setattr(opus, "checksum", lambda page: (checked.append(len(page)), plain(page))[1])
    ogg = OggPackets()
    for at in range(0, len(data), cut):
        for _ in ogg.step(data[at : at + cut]):
            pass
        assert len(ogg._bytes) <= 2 * MOST_PAGE and len(ogg._part or b"") <= 2**16
    assert sum(checked) <= opus.EFFORT * len(data)
    for _ in range(12):  # and a client that behaves again is heard again
        heard = sum(1 for _ in ogg.step(stream))
    assert heard == 62


def test_the_end_of_a_turn_is_not_kept_back():
    reader, sound = OggOpusIn(22_050), sweep(0.4)
    heard = reader.decode(OggOpusOut(RATE).encode(sound))
    rest = reader.flush()
    late = 24  # samples of the lower rate
    assert len(rest) and abs(len(heard) + len(rest) - 0.4 * 22_050 - late) <= 1
    assert len(reader.decode(OggOpusOut(RATE).encode(sound))) == len(heard)  # and it goes on


class Older:
    """sphn 0.1's streams: a thread works, so that what is put in comes out at a later call, piece by piece."""

    class OpusStreamReader:
        def __init__(self, rate):
            self._inner, self._ready, self._late = sphn.OpusStreamReader(rate), [], []

        def append_bytes(self, data):
            self._ready += self._late
            self._late = [self._inner.append_bytes(data)]

        def read_pcm(self):
            return self._ready.pop(0) if self._ready else np.zeros(0, np.float32)

    class OpusStreamWriter:
        def __init__(self, rate):
            self._inner, self._ready = sphn.OpusStreamWriter(rate), []

        def append_pcm(self, samples):
            assert samples.shape == (PACKET,)
            self._ready += pages_of(self._inner.append_pcm(samples))

        def read_bytes(self):
            return self._ready.pop(0) if self._ready else b""


def test_sphn_0_1_works_too(monkeypatch, stream, clean):
    newer = by_sphn(monkeypatch)
    older = types.SimpleNamespace(OpusStreamReader=Older.OpusStreamReader, OpusStreamWriter=Older.OpusStreamWriter)
    monkeypatch.setattr(opus, "need", lambda *names: older)
    assert OggOpusOut(RATE).encode(sweep(2.4)) == newer
    sound, reader = decoded(stream, cut=500)
    assert reader.heard == 60 and np.array_equal(sound, clean[: len(sound)]) and len(sound) >= 59 * PACKET


def test_without_sphn_the_extra_is_named(monkeypatch):
    for name in ("sphn", "av"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    for make in (OggOpusIn, OggOpusOut):
        with pytest.raises(vivavoce.errors.MissingExtra, match=r"vivavoce\[serve\]"):
            make(RATE)
