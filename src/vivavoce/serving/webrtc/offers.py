"""What a client offers (SDP, RFC 8866 and 8829): checked before anything is made of it, each fault with a code."""

import ipaddress
from dataclasses import dataclass
from typing import Any

from vivavoce.errors import need
from vivavoce.serving.realtime.settings import Invalid

LONGEST, MOST_LINES = 64 * 1024, 1000  # bytes and lines of an offer
MOST_CANDIDATES = 16  # addresses of the client's that are tried, for each line of media
MESSAGE = 65_536  # bytes of a data channel's message, where the offer does not say
DIGESTS = ("sha-256", "sha-384", "sha-512")


@dataclass(frozen=True)
class Offer:
    """An offer that can be answered. sdp: the text, with those of the client's addresses that are tried; `events`:
    whether there is to be a data channel; `message`: bytes that its messages may have towards the client."""

    sdp: str
    events: bool
    message: int


def read_offer(text: str) -> Offer:
    """The offer in `text`; raises `Invalid`: "invalid_offer", "offer_too_large", "no_audio", "no_opus",
    "video_not_supported"."""
    if len(text) > LONGEST or text.count("\n") > MOST_LINES:
        raise Invalid("offer_too_large", f"an offer may have {LONGEST} bytes and {MOST_LINES} lines", "sdp")
    if not text.startswith("v=0"):
        raise Invalid("invalid_offer", "this is no SDP: send what createOffer() of RTCPeerConnection gives", "sdp")
    kept = "\r\n".join(with_few_candidates(text.splitlines())) + "\r\n"
    sdp = need("aiortc.sdp", "webrtc", "WebRTC calls")
    try:
        description = sdp.SessionDescription.parse(kept)
    except Exception as error:  # whatever a parser of strangers' text may raise
        words = f"the offer cannot be read: {type(error).__name__}: {error}"[:200]
        raise Invalid("invalid_offer", words, "sdp") from None
    media = description.media
    check_kinds([one.kind for one in media])
    for one in media:
        check_transport(one)
    mids = {one.rtp.muxId for one in media}
    if len(mids) < len(media) or any(set(group.items) - mids for group in description.group):
        raise Invalid("invalid_offer", "a=group and a=mid do not name the same lines", "sdp")
    audio = next(one for one in media if one.kind == "audio")
    if audio.direction not in ("sendrecv", "recvonly"):
        words = f"the audio line is {audio.direction or 'without direction'}: offer one that hears (sendrecv)"
        raise Invalid("no_audio", words, "sdp")
    if not any(codec.mimeType.lower() == "audio/opus" and codec.clockRate == 48_000 for codec in audio.rtp.codecs):
        raise Invalid("no_opus", "the audio line offers no Opus at 48 kHz, which every browser has", "sdp")
    channel = next((one for one in media if one.kind == "application"), None)
    told = getattr(channel, "sctpCapabilities", None)
    return Offer(kept, channel is not None, min(MESSAGE if told is None else told.maxMessageSize or 2**18, 2**18))


def check_kinds(kinds: list[str]) -> None:
    """One line of audio, and at most one for the data channel."""
    if "video" in kinds:
        raise Invalid("video_not_supported", "this server hears and speaks, it cannot see: offer audio alone", "sdp")
    if strange := set(kinds) - {"audio", "application"}:
        raise Invalid("invalid_offer", f"lines of '{min(strange):.20}' are not answered here: offer audio", "sdp")
    if "audio" not in kinds:
        raise Invalid("no_audio", "the offer has no audio: add a microphone's track before createOffer()", "sdp")
    if len(set(kinds)) < len(kinds):
        raise Invalid("invalid_offer", "one line of audio and one of data are answered, not more", "sdp")


def check_transport(media: Any) -> None:
    """What ICE and DTLS need is there."""
    missing = [
        name
        for name, there in (
            ("ice-ufrag", media.ice.usernameFragment), ("ice-pwd", media.ice.password), ("mid", media.rtp.muxId),
            ("setup", media.dtls), ("rtcp-mux", media.kind != "audio" or media.rtcp_mux),
        )
        if not there
    ]  # fmt: skip
    if missing:
        raise Invalid("invalid_offer", f"the {media.kind} line has no a={missing[0]}", "sdp")
    if not any(one.algorithm.lower() in DIGESTS for one in media.dtls.fingerprints):
        raise Invalid("invalid_offer", f"the {media.kind} line has no fingerprint of {' or '.join(DIGESTS)}", "sdp")


def with_few_candidates(lines: list[str]) -> list[str]:
    """The lines but for addresses that are not tried: names, whose look-up would ask the network for a stranger, TCP,
    and more than `MOST_CANDIDATES`. Clients reach this server all the same: they try its addresses themselves."""
    kept, count = [], 0
    for line in lines:
        if line.startswith("m="):
            count = 0
        if line.startswith("a=candidate:"):
            fields = line.split()
            tried = len(fields) > 7 and fields[2].lower() == "udp" and is_address(fields[4], fields[5])
            count += tried
            if not tried or count > MOST_CANDIDATES:
                continue
        kept.append(line)
    return kept


def is_address(host: str, port: str) -> bool:
    """Whether this is the address of one machine, as it stands, and a port."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    nobody = address.is_multicast or address.is_unspecified or host == "255.255.255.255"
    return not nobody and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
