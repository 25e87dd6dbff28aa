"""The parts of a WebRTC call, without a network: what is said by packets, what is heard, offers, bounded events."""

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

from vivavoce.audio.live_resampler import LiveResampler
from vivavoce.dialogue.turn_detection import Turn
from vivavoce.errors import RequestError
from vivavoce.serving.clock import Clock, HandClock
from vivavoce.serving.conversation import Frame
from vivavoce.serving.realtime.answers import Answers
from vivavoce.serving.realtime.items import Item, Sound
from vivavoce.serving.realtime.responses import PlayedEstimate
from vivavoce.serving.realtime.settings import Invalid
from vivavoce.serving.webrtc.channel import MOST_WAITING, Channel
from vivavoce.serving.webrtc.ears import Ears
from vivavoce.serving.webrtc.ice import Ice
from vivavoce.serving.webrtc.offers import MOST_CANDIDATES, read_offer
from vivavoce.serving.webrtc.peer import encode, encoder, track_of
from vivavoce.serving.webrtc.voice import LEAD, MORE, PACKET, RATE, Voice
from vivavoce.systems.signal_models import FRAME, tone

MODEL = 24_000


class Said:
    """A voice, and what it did: `pass_(n)` takes n packets, 20 ms apart."""

    def __init__(self):
        self.clock, self.events, self.packets = HandClock(), [], []
        self.voice = Voice(MODEL, self.clock.now)
        self.voice.post = self.events.append

    def pass_(self, packets):
        for _ in range(packets):
            self.packets.append(self.voice.take())
            self.clock.advance(PACKET / RATE)

    @property
    def told(self):
        return [(e["type"].removeprefix("output_audio_buffer."), e["response_id"]) for e in self.events]

    @property
    def samples(self):
        return np.concatenate(self.packets)


def whole(samples):
    """Samples as they leave: at 48 kHz, in one go."""
    resampler = LiveResampler(MODEL, RATE)
    return np.concatenate([resampler.step(samples[None])[0], resampler.flush()[0]])


def test_an_answer_is_played_whole_after_its_lead():
    said, sound = Said(), tone(440.0, 0, 4 * FRAME)
    line = said.voice.line("a")
    said.pass_(2)
    for at in range(4):  # a frame each 80 ms, one 50 ms late
        line.add(sound[at * FRAME : (at + 1) * FRAME])
        said.pass_((4, 6, 2, 4)[at])
    line.end()
    assert said.told == [("started", "a")]
    said.pass_(8)
    assert said.told == [("started", "a"), ("stopped", "a")]
    first = 2 + round(LEAD * RATE / PACKET)
    expected = whole(sound)
    found = said.samples[first * PACKET :]
    assert not said.samples[: first * PACKET].any()
    assert np.array_equal(found[: len(expected)], expected) and not found[len(expected) :].any()
    assert said.voice.lead == LEAD and not said.voice.lines
    assert line.played(0.0) == pytest.approx(4 * FRAME / MODEL, abs=1e-3)


def test_a_hole_is_silent_and_lengthens_the_lead():
    said, sound = Said(), tone(440.0, 0, 2 * FRAME)
    line = said.voice.line("a")
    line.add(sound[:FRAME])
    said.pass_(9)  # 3 of lead, 4 of sound, 2 of nothing
    line.add(sound[FRAME:])
    line.end()
    said.pass_(7)
    heard = np.abs(said.samples.reshape(-1, PACKET)).max(axis=1) > 0.1
    assert heard.tolist() == [False] * 3 + [True] * 4 + [False] * 2 + [True] * 5 + [False] * 2  # the last has 1 ms
    assert said.voice.lead == LEAD + MORE
    assert np.array_equal(said.samples[9 * PACKET : 13 * PACKET], whole(sound)[4 * PACKET : 8 * PACKET])


def test_what_is_stopped_ends_with_the_packet_that_was_sent():
    said, sound = Said(), tone(440.0, 0, 10 * FRAME)
    line, next_ = said.voice.line("a"), said.voice.line("b")
    line.add(sound)
    next_.add(sound[:FRAME])
    assert line.ahead(0.0) == pytest.approx(0.8) and next_.ahead(0.0) == pytest.approx(0.88)
    said.pass_(3 + 5)
    assert line.played(0.0) == pytest.approx(0.1, abs=2e-3) and line.ahead(0.0) == pytest.approx(0.7)
    line.stop()
    assert said.told == [("started", "a"), ("cleared", "a")] and line.ahead(0.0) == 0.0
    line.add(sound)  # what still comes is for nobody
    line.end()
    said.pass_(1)
    assert said.told[2:] == [("started", "b")]
    said.voice.clear()
    said.voice.clear()
    said.pass_(3)
    assert said.told[3:] == [("cleared", "b")] and not said.samples[-3 * PACKET :].any() and said.voice.cleared == 2
    unheard = said.voice.line("c")
    unheard.add(sound)
    unheard.stop()
    said.voice.line("d").end()
    assert len(said.events) == 4  # nobody heard these, so nothing was cleared, or stopped


@pytest.mark.parametrize(("half", "allowed"), [(True, True), (True, False), (False, True)])
def test_the_end_of_an_answer_that_is_spoken_over(half, allowed):
    """It is computed, and still has to be played: a model that takes turns is silent, one that does not goes on."""
    said, sound, cuts = Said(), tone(440.0, 0, 10 * FRAME), []
    line, item = said.voice.line("a"), Item("message", "assistant", sound=Sound(MODEL))
    line.add(sound)
    line.end()
    item.sound.add(sound)
    conversation = SimpleNamespace(note=lambda event, **fields: None, command=lambda run: None)
    answers = Answers(conversation, None, said.clock.now, None, bool, lambda: allowed, None, half_duplex=half)
    answers.last = SimpleNamespace(item=item, played=line, truncated=cuts.append)
    said.pass_(10)  # what is over waits for nothing
    nothing = np.zeros(FRAME, np.float32)
    answers.frame(Frame(0, nothing, nothing, turns=(Turn("user_started", 0.0),)), waiting=False)
    cut = half and allowed
    assert cuts == ([199] if cut else []) and item.cut == ((199, "sent") if cut else None)  # the filter is 1 ms late
    assert said.told == [("started", "a"), ("cleared", "a")][: 1 + cut]
    answers.last = SimpleNamespace(item=item, played=PlayedEstimate())  # what a client plays is the client's to stop
    answers.hush()


def test_the_track_keeps_time():
    """Each packet has its moment of the clock: no error adds up, a short delay is made up for, a stall is not."""

    class Turned(Clock):
        speed, moment = 1e9, 0.0

        def __init__(self):
            pass

        def now(self):
            return self.moment

    clock = Turned()
    track, stamps = track_of(Voice(MODEL, clock.now), clock), []

    async def go():
        for late in [0.0] * 5 + [0.05] + [0.0] * 3 + [1.0, 0.0]:
            clock.moment += late
            before = asyncio.get_running_loop().time()
            packet = await asyncio.wait_for(track.recv(), 5)
            stamps.append((packet.pts, packet.time_base, asyncio.get_running_loop().time() - before))
            due = track._start + len(stamps) * PACKET / RATE
            clock.moment = max(clock.moment, due)

    asyncio.run(go())
    assert [pts for pts, _, _ in stamps] == [PACKET * at for at in range(11)] and stamps[0][1].denominator == RATE
    assert track._start == pytest.approx(1.0)  # the stall of a second alone has moved it; not the 50 ms


def test_opus_carries_the_voice():
    import av

    sound, codec = whole(tone(440.0, 0, 10 * FRAME)), encoder(av)
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout, decoder.format = RATE, "mono", "s16"
    packets = [encode(av, codec, piece) for piece in sound[: len(sound) // PACKET * PACKET].reshape(-1, PACKET)]
    heard = np.concatenate([f.to_ndarray()[0] for p in packets for f in decoder.decode(p)]) / 32768
    middle = heard[4800:-4800]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(np.argmax(spectrum) * RATE / len(middle) - 440) < 3
    assert np.abs(middle).max() == pytest.approx(0.25, rel=0.1)
    assert all(40 < p.size < 400 for p in packets)


# -- ears --


def test_lost_packets_are_silence_of_the_same_length():
    ears, sound = Ears(MODEL, longest=0.5), np.sin(np.arange(10 * PACKET) / 20).astype(np.float32)
    pieces = sound.reshape(10, PACKET)
    kept = [0, 1, 2, 5, 6, 7, 8, 9]  # two never come
    heard = np.concatenate([ears.take(pieces[at], RATE, at * PACKET) for at in kept])
    holed = sound.copy()
    holed[3 * PACKET : 5 * PACKET] = 0
    assert np.array_equal(heard, LiveResampler(RATE, MODEL).step(holed[None])[0])
    assert ears.lost == pytest.approx(0.04) and ears.heard == pytest.approx(0.16)


def test_silence_that_was_heard_already_is_not_heard_twice():
    ears, packet = Ears(MODEL, longest=0.5), np.zeros(PACKET, np.float32)
    sizes = []
    for stamp, silent in ((0, 0.0), (11 * PACKET, 0.16), (40 * PACKET, 0.56), (1000 * PACKET, 0.0), (0, 0.0)):
        sizes.append(len(ears.take(packet, RATE, stamp, silent)))
    # 200 ms of which 160 had been heard; 560 and all; a long hole as far as it is filled; stamps that begin anew
    assert sizes == [480, 480 + round(0.04 * MODEL), 480, 480 + round(0.5 * MODEL), 480]
    assert len(ears.take(packet[:160], 8000, 5)) == 480  # another codec: 20 ms again


# -- offers --

OFFER = """v=0
o=- 1 1 IN IP4 0.0.0.0
s=-
t=0 0
a=group:BUNDLE 0 1
m=audio 9 UDP/TLS/RTP/SAVPF 111 0
c=IN IP4 0.0.0.0
a=sendrecv
a=mid:0
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=rtpmap:0 PCMU/8000
a=ice-ufrag:abcd
a=ice-pwd:0123456789abcdef01234567
a=fingerprint:sha-256 AA:BB
a=setup:actpass
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=mid:1
a=sctp-port:5000
a=max-message-size:100000
a=ice-ufrag:abcd
a=ice-pwd:0123456789abcdef01234567
a=fingerprint:sha-256 AA:BB
a=setup:actpass
"""
VIDEO = OFFER[OFFER.index("m=audio") : OFFER.index("m=application")].replace("m=audio", "m=video")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "invalid_offer"),
        ("hello", "invalid_offer"),
        ("v=0", "no_audio"),
        ("v=0\nm=audio", "invalid_offer"),
        ("v=zero\n" + OFFER, "invalid_offer"),
        ("v=0\n" + 70_000 * "x", "offer_too_large"),
        ("v=0\n" + 2000 * "a=b\n", "offer_too_large"),
        (OFFER[: OFFER.index("m=audio")] + OFFER[OFFER.index("m=application") :], "no_audio"),
        (OFFER.replace("a=sendrecv", "a=inactive"), "no_audio"),
        (OFFER.replace("a=sendrecv", "a=sendonly"), "no_audio"),
        (OFFER.replace("a=sendrecv\n", ""), "no_audio"),
        (OFFER + VIDEO, "video_not_supported"),
        (OFFER + VIDEO.replace("m=video", "m=audio"), "invalid_offer"),
        (OFFER + "m=text 9 UDP/TLS/RTP/SAVPF 98\n", "invalid_offer"),
        (OFFER.replace("opus/48000/2", "opus/8000"), "no_opus"),
        (OFFER.replace("a=rtpmap:111 opus/48000/2\n", ""), "no_opus"),
        (OFFER.replace("a=ice-pwd:0123456789abcdef01234567\n", ""), "invalid_offer"),
        (OFFER.replace("a=setup:actpass\n", ""), "invalid_offer"),
        (OFFER.replace("a=setup:actpass\n", "a=setup:perhaps\n"), "invalid_offer"),
        (OFFER.replace("sha-256", "md5"), "invalid_offer"),
        (OFFER.replace("a=rtcp-mux\n", ""), "invalid_offer"),
        (OFFER.replace("BUNDLE 0 1", "BUNDLE 0 7"), "invalid_offer"),
        (OFFER.replace("a=mid:1", "a=mid:0"), "invalid_offer"),
        (OFFER.replace("111 opus", "many opus"), "invalid_offer"),
        (OFFER.replace("a=max-message-size:100000", "a=max-message-size:lots"), "invalid_offer"),
    ],
)
def test_offers_that_cannot_be_answered_are_named(text, code):
    with pytest.raises(Invalid) as refused:
        read_offer(text)
    assert refused.value.code == code and refused.value.param == "sdp", refused.value


def test_an_offer_says_what_its_channel_takes():
    assert read_offer(OFFER).message == 100_000 and read_offer(OFFER).events
    assert read_offer(OFFER.replace("a=max-message-size:100000\n", "")).message == 65_536
    assert read_offer(OFFER.replace(":100000", ":0")).message == 2**18  # no limit of its own
    alone = read_offer(OFFER[: OFFER.index("m=application")].replace(" 0 1\n", " 0\n"))
    assert not alone.events


def test_only_addresses_that_stand_there_are_tried():
    """Nothing is looked up, nothing but UDP is tried, and not without end."""
    line = "a=candidate:1 1 {} 2122260223 {} {} typ host\n"
    good = [line.format("udp", "192.168.0.7", 50_000), line.format("UDP", "2001:db8::1", 1)]
    bad = [line.format(*fields) for fields in (
        ("udp", "4f3a.local", 50_000), ("udp", "example.org", 50_000), ("tcp", "192.168.0.7", 9),
        ("udp", "192.168.0.7", 0), ("udp", "192.168.0.7", 70_000), ("udp", "224.0.0.1", 5), ("udp", "0.0.0.0", 5),
        ("udp", "255.255.255.255", 5), ("udp", "192.168.0.7", "9" * 5000),
    )] + ["a=candidate:\n", "a=candidate:1 1 udp\n"]  # fmt: skip
    many = [line.format("udp", "10.0.0.1", port) for port in range(1000, 1100)]
    head, tail = OFFER.split("a=mid:0\n")
    kept = read_offer(head + "a=mid:0\n" + "".join(bad + good) + tail).sdp
    assert [one for one in kept.splitlines() if "candidate" in one] == [one.strip() for one in good]
    kept = read_offer(head + "a=mid:0\n" + "".join(many) + tail + "".join(many)).sdp
    assert kept.count("candidate") == 2 * MOST_CANDIDATES


# -- where packets go --


def test_nobody_is_asked_for_the_way_unless_somebody_says_whom():
    assert Ice().configuration().iceServers == []
    servers = Ice(("stun:stun.example.org:3478", "turn:me:secret@turn.example.org?transport=udp")).configuration()
    stun, turn = servers.iceServers
    assert (stun.urls, stun.username) == ("stun:stun.example.org:3478", None)
    assert (turn.urls, turn.username, turn.credential) == ("turn:turn.example.org?transport=udp", "me", "secret")
    with pytest.raises(RequestError, match="--ice http"):
        Ice(("http://example.org",)).check()
    with pytest.raises(RequestError, match="--ice tcp:x") as refused:
        Ice(("tcp:me:secret@x",)).check()
    assert "secret" not in str(refused.value)
    assert Ice.of("192.168.1.5").gathered(local=False) == ["192.168.1.5"]
    assert Ice.of("::").addresses == Ice.of("0.0.0.0").addresses == Ice.of("my-machine").addresses == ()
    assert "127.0.0.1" in Ice.of("127.0.0.1").gathered(local=True)


# -- events --


class Line:
    """A data channel that keeps what is sent."""

    def __init__(self, label="oai-events"):
        self.label, self.sent, self.readyState, self.bufferedAmount = label, [], "open", 0

    def on(self, name, handler):
        self.receive = handler

    def send(self, text):
        self.sent.append(json.loads(text))

    def close(self):
        self.readyState = "closed"


def test_events_wait_for_the_channel_and_are_bounded():
    over = []
    channel = Channel(1000, rate=10.0, burst=600, over=lambda code, words: over.append(code))
    for number in range(600):
        channel.post({"type": "early", "number": number})
    other, line = Line("chat"), Line()
    channel.open(other)
    channel.open(line)
    channel.open(second := Line())
    assert other.readyState == second.readyState == "closed" and not second.sent
    assert [event["number"] for event in line.sent] == list(range(600 - 512, 600))  # the newest
    channel.post({"type": "conversation.item.retrieved", "audio": 2000 * "A"})
    error = line.sent[-1]["error"]
    assert error["code"] == "event_too_big" and "conversation.item.retrieved" in error["message"]
    got = []
    line.receive('{"type": "a"}')
    line.receive(b"bytes are no event")
    channel.start(got.append)
    assert got == ['{"type": "a"}', None]
    for _ in range(700):
        line.receive("x")
    assert over[0] == "too_many_messages" and 598 <= len(got) - 2 <= 610
    line.bufferedAmount = MOST_WAITING + 1
    channel.post({"type": "late"})
    assert over[-1] == "slow_client"


def test_a_caller_that_sends_much_before_there_is_a_session_is_refused():
    over = []
    channel = Channel(1000, rate=1e6, burst=10_000, over=lambda code, words: over.append(code))
    channel.open(line := Line())
    for _ in range(512):
        line.receive("x")
    assert not over
    line.receive("x")
    assert over == ["too_many_messages"]
