"""Opus in Ogg as it comes over a connection: one endless stream a direction, whatever happens to its bytes.

Pages are found, checked and taken apart here (RFC 3533); sphn, which gives up a stream for good after one bad byte,
is handed good packets only, each in a page of our own. So a stream may begin anywhere, be cut anywhere, and lose or
damage pages: what is lost is what was in them.
"""

import math
import zlib
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np

from vivavoce.audio.live_resampler import LiveResampler
from vivavoce.errors import need

CLOCK = 48_000  # Opus counts its samples at this rate, whatever the sound had before
RATES = (8_000, 12_000, 16_000, 24_000, 48_000)  # what its decoder gives out
RATE, PACKET = 24_000, 960  # what is sent: 40 ms a packet, a packet a page
BITS = 48_000  # a second of it, at most
MOST_PAGE = 27 + 255 + 255 * 255
MOST_PACKET = 2**16  # 48 frames of 1275 bytes are 61,296
EFFORT = 8  # bytes that may be checked for each that comes: false beginnings of pages cost no more
CONTINUED, BEGINS = 1, 2  # bits of a page's flags

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MILLISECONDS = {"silk": (10, 20, 40, 60), "hybrid": (10, 20), "celt": (2.5, 5, 10, 20)}


class OggOpusIn:
    """Bytes of one Ogg/Opus stream, cut anywhere -> samples [n] float32, mono, at `rate` Hz.

    Any cutting gives the same samples. `heard`: packets so far; `lost_packets`: those that were no Opus, or more than
    was asked for; `lost_bytes`: what belonged to no whole page. Headers may be late, repeated or missing; stereo is
    mixed down; what stands between lost pages is not filled in.
    """

    def __init__(self, rate: int):
        self.rate = rate
        self._native = rate if rate in RATES else CLOCK
        self._resampler = LiveResampler(self._native, rate)
        self._ogg = OggPackets()
        self._foreign = False  # the stream has said that it is something else
        self.heard = self.lost_packets = 0
        self._restart()

    @property
    def lost_bytes(self) -> int:
        """Bytes so far that belonged to no whole page."""
        return self._ogg.lost

    def decode(self, data: bytes, most: float = math.inf) -> np.ndarray:
        """The next bytes -> what they hold, at most `most` seconds of it (a few bytes can say "minutes")."""
        left, pieces = most * CLOCK, []
        for begins, packet in self._ogg.step(data):
            if packet.startswith(b"OpusHead"):
                self._foreign = not readable(packet)
                self._restart()
                continue
            if begins:
                self._foreign = True
            if packet.startswith(b"OpusTags"):
                continue
            count = 0 if self._foreign else samples_of_packet(packet)
            sound = self._sound(packet) if 0 < count <= left else None
            if sound is None:
                self.lost_packets += 1
            else:
                left -= count
                self.heard += 1
                pieces.append(sound)
        block = np.concatenate([np.zeros(0, np.float32), *pieces])
        return self._resampler.step(block[None])[0]

    def flush(self) -> np.ndarray:
        """What the resampler still holds; the stream may go on afterwards."""
        return self._resampler.flush()[0]

    def _restart(self) -> None:
        """A decoder without a past."""
        self._reader = need("sphn", "serve", "Opus").OpusStreamReader(self._native)
        self._sent = 0
        for header in (opus_head(self._native), opus_tags()):
            self._append(header)

    def _sound(self, packet: bytes) -> np.ndarray | None:
        try:
            return self._append(packet)
        except ValueError:  # sphn's word for what libopus does not take
            self._restart()
            return None

    def _append(self, packet: bytes) -> np.ndarray:
        flags = BEGINS if self._sent == 0 else 0
        page = page_of([packet], self._sent * PACKET, serial=1, sequence=self._sent, flags=flags)
        self._sent = (self._sent + 1) % 2**32
        return drained(self._reader.append_bytes(page), getattr(self._reader, "read_pcm", None))


class OggOpusOut:
    """Samples at `rate` Hz -> bytes of one Ogg/Opus stream at 24 kHz: two header pages, then a page each 40 ms.

    PyAV encodes where it is installed, at a quarter of sphn's cost, and lets other threads run meanwhile.
    """

    def __init__(self, rate: int):
        self.rate = rate
        self._resampler = LiveResampler(rate, RATE)
        self._page = PyavPages() if pyav() is not None else SphnPages()
        self._rest = np.zeros(0, np.float32)

    def encode(self, samples: np.ndarray) -> bytes:
        """Samples [n] float32, any n -> the pages that they fill; the first ones follow the headers."""
        block = np.concatenate([self._rest, self._resampler.step(samples[None])[0]])
        whole = len(block) // PACKET * PACKET
        self._rest = block[whole:]
        return b"".join(self._page(piece) for piece in block[:whole].reshape(-1, PACKET))


class PyavPages:
    """40 ms of samples -> its page, by ffmpeg's libopus: CELT alone, which delays by 2.5 ms, at middle effort."""

    def __init__(self) -> None:
        self._av = pyav()
        self._codec = self._av.CodecContext.create("libopus", "w")
        self._codec.sample_rate, self._codec.layout, self._codec.format = RATE, "mono", "flt"
        self._codec.bit_rate = BITS
        self._codec.options = {"application": "lowdelay", "compression_level": "5", "frame_duration": "40"}
        self._codec.open()
        self._pages = 0

    def __call__(self, samples: np.ndarray) -> bytes:
        frame = self._av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = RATE, self._pages * PACKET
        pages = b""
        if not self._pages:
            head = bytes(self._codec.extradata)
            pages = page_of([head], flags=BEGINS) + page_of([opus_tags()], sequence=1)
        for packet in self._codec.encode(frame):
            self._pages += 1
            pages += page_of([bytes(packet)], self._pages * PACKET * CLOCK // RATE, sequence=1 + self._pages)
        return pages


class SphnPages:
    """40 ms of samples -> its page, by sphn."""

    def __init__(self) -> None:
        self._writer = need("sphn", "serve", "Opus").OpusStreamWriter(RATE)

    def __call__(self, samples: np.ndarray) -> bytes:
        page = self._writer.append_pcm(np.ascontiguousarray(samples))
        if page is not None:
            return bytes(page)
        pages = b""  # sphn 0.1 works in a thread of its own: what is not ready comes with the next call
        while more := self._writer.read_bytes():
            pages += bytes(more)
        return pages


class OggPackets:
    """Bytes of an Ogg stream, cut anywhere -> its packets. Only pages with the right checksum count; what stands
    between them is skipped, and counted in `lost`. Holds at most one page and one packet."""

    def __init__(self) -> None:
        self.lost = 0
        self._bytes = bytearray()
        self._effort = 0
        self._serial = self._next = -1
        self._part: bytes | None = None  # of a packet that goes on in the next page

    def step(self, data: bytes) -> Iterator[tuple[bool, bytes]]:
        """The next bytes -> (whether it begins a stream, packet) for each packet that they complete."""
        for at in range(0, len(data), MOST_PAGE):
            piece = data[at : at + MOST_PAGE]
            self._bytes += piece
            self._effort = min(self._effort + EFFORT * len(piece), 2 * EFFORT * MOST_PAGE)
            yield from self._whole_pages()

    def _whole_pages(self) -> Iterator[tuple[bool, bytes]]:
        at = 0
        while (begin := self._bytes.find(b"OggS", at)) >= 0:
            end = self._end(begin)
            if end is None:
                # A damaged length would swallow what follows it: a good page inside ends the wait.
                inside = self._good_page(begin + 4)
                if inside is None:
                    break
                begin, end = inside
            elif not self._good(begin, end):
                self.lost += begin + 4 - at
                at = begin + 4
                continue
            self.lost += begin - at
            page, at = bytes(self._bytes[begin:end]), end
            yield from self._packets(page)
        else:
            begin = max(at, len(self._bytes) - 3)  # "Ogg" may be a beginning
        self.lost += begin - at
        del self._bytes[:begin]

    def _end(self, begin: int) -> int | None:
        """Where the page that begins there ends; None while that is not known or not there yet."""
        head = self._bytes[begin : begin + 27 + 255]
        if len(head) > 4 and head[4] != 0:
            return begin  # a version that there is not: no page
        if len(head) < 27 or len(head) < 27 + head[26]:
            return None
        end = begin + 27 + head[26] + sum(head[27 : 27 + head[26]])
        return end if end <= len(self._bytes) else None

    def _good(self, begin: int, end: int) -> bool:
        cost = 32 + end - begin
        if end <= begin or cost > self._effort:
            return False
        self._effort -= cost
        page = self._bytes[begin:end]
        claimed, page[22:26] = bytes(page[22:26]), bytes(4)
        return checksum(page) == claimed

    def _good_page(self, begin: int) -> tuple[int, int] | None:
        while self._effort > 0 and (begin := self._bytes.find(b"OggS", begin)) >= 0:
            end = self._end(begin)
            self._effort -= 32
            if end is not None and self._good(begin, end):
                return begin, end
            begin += 4
        return None

    def _packets(self, page: bytes) -> Iterator[tuple[bool, bytes]]:
        flags, serial, sequence = page[5], page[14:18], int.from_bytes(page[18:22], "little")
        number = int.from_bytes(serial, "little")
        if flags & BEGINS or (number, sequence) != (self._serial, self._next):
            self._part = None
        self._serial, self._next = number, (sequence + 1) % 2**32
        part, skip = (self._part, self._part is None) if flags & CONTINUED else (b"", False)
        at, begins = 27 + page[26], bool(flags & BEGINS)
        held = part or b""
        for lace in page[27:at]:
            held += page[at : at + lace]
            at += lace
            if len(held) > MOST_PACKET:
                held, skip = b"", True
            if lace < 255:
                if not skip:
                    yield begins, held
                held, skip, begins = b"", False, False
        goes_on = page[26] > 0 and page[26 + page[26]] == 255
        self._part = held if goes_on and not skip else None


def page_of(packets: list[bytes], granule: int = 0, serial: int = 0, sequence: int = 0, flags: int = 0) -> bytes:
    """One Ogg page of whole packets; `granule`: samples at 48 kHz up to its end."""
    laces = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    head = b"OggS\0" + bytes([flags]) + granule.to_bytes(8, "little") + serial.to_bytes(4, "little")
    head += sequence.to_bytes(4, "little")
    body = bytes([len(laces)]) + laces + b"".join(packets)
    return head + checksum(head + bytes(4) + body) + body


def checksum(data: bytes | bytearray) -> bytes:
    """Ogg's CRC of a page whose own field is zero: zlib's polynomial, but highest bit first, from 0, not inverted."""
    value = zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return value.to_bytes(4, "big").translate(_MIRRORED)


def opus_head(rate: int, channels: int = 1) -> bytes:
    """The packet that begins an Opus stream (RFC 7845, 5.1)."""
    skip = 3840  # of the decoder's first samples, at 48 kHz
    return b"OpusHead\x01" + bytes([channels]) + skip.to_bytes(2, "little") + rate.to_bytes(4, "little") + bytes(3)


def opus_tags(vendor: bytes = b"vivavoce") -> bytes:
    """The packet that comes second."""
    return b"OpusTags" + len(vendor).to_bytes(4, "little") + vendor + bytes(4)


def readable(head: bytes) -> bool:
    """Whether the stream that an OpusHead begins is one of mono or stereo, in a version that we know."""
    whole = len(head) >= 19 and head[8] & 0xF0 == 0
    return whole and (head[18] == 0 or (len(head) >= 21 and head[19] == 1))


def samples_of_packet(packet: bytes) -> int:
    """How many samples at 48 kHz an Opus packet holds, 120 to 5760; 0 for what is none (RFC 6716, 3.1 to 3.4)."""
    if not packet:
        return 0
    kind, code, at = packet[0] >> 3, packet[0] & 3, 1
    name = "silk" if kind < 12 else "hybrid" if kind < 16 else "celt"
    length = _MILLISECONDS[name][kind % len(_MILLISECONDS[name])]
    end, count, sizes = len(packet), (1, 2, 2, 0)[code], []
    varies, equal = code == 2, 2 if code == 1 else 1
    if code == 3:
        if end < 2:
            return 0
        count, varies, at = packet[1] & 63, bool(packet[1] & 128), 2
        equal = 1 if varies else count
        if packet[1] & 64:  # padding: bytes of 255 are 254 and one more to read
            while at < end and packet[at] == 255:
                end, at = end - 254, at + 1
            if at >= end:
                return 0
            end, at = end - packet[at], at + 1
    for _ in range(count - 1 if varies else 0):
        if at >= end or (packet[at] >= 252 and at + 1 >= end):
            return 0
        long = packet[at] >= 252
        sizes.append(packet[at] + 4 * packet[at + 1] if long else packet[at])
        at += 2 if long else 1
    last = end - at - sum(sizes)
    if not count or last < 0 or last % equal or max([*sizes, last // equal]) > 1275:
        return 0
    samples = round(count * length * CLOCK / 1000)
    return samples if samples <= 5760 else 0


def pyav() -> Any:
    """PyAV, ffmpeg's codecs, or None where it is not installed."""
    try:
        return import_module("av")
    except ImportError:
        return None


def drained(given: Any, read: Any) -> np.ndarray:
    """What a reader gave: sphn 0.2 returns it, 0.1 has a thread that gives it out piece by piece, maybe later."""
    if given is not None:
        return np.asarray(given, np.float32)
    pieces = [np.zeros(0, np.float32)]
    while read is not None and (piece := read()) is not None and len(piece):
        pieces.append(np.asarray(piece, np.float32))
    return np.concatenate(pieces)
