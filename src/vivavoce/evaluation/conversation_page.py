"""Conversations as one self-contained HTML page: players, both channels' spectrograms, tokens over time, latency."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from vivavoce.evaluation.conversation import Conversation

LEFT, RIGHT = 0.11, 0.985  # the plots' edges as parts of the picture's width: the cursor of the players uses them too

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1060px; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; color: #57606a; } .note { color: #57606a; font-size: .9rem; }
.plot { position: relative; } .plot img { width: 100%; display: block; }
.cursor { position: absolute; top: 0; bottom: 0; width: 1.5px; background: #d1242f; opacity: 0; }
.players { display: flex; gap: 1.2rem; flex-wrap: wrap; margin: .5rem 0; }
.players label { font-size: .9rem; color: #57606a; }
audio { display: block; height: 34px; width: 320px; }
"""

SCRIPT = """
for (const box of document.querySelectorAll("section.conversation")) {
  const cursor = box.querySelector(".cursor"), seconds = Number(box.dataset.seconds);
  const left = Number(box.dataset.left), right = Number(box.dataset.right);
  for (const player of box.querySelectorAll("audio"))
    player.addEventListener("timeupdate", () => {
      cursor.style.opacity = 1;
      cursor.style.left = 100 * (left + (right - left) * player.currentTime / seconds) + "%";
    });
}
"""


def conversation_page(conversations: Sequence[Conversation], title: str, notes: Sequence[str] = ()) -> str:
    """The page as one HTML text that needs nothing else, sound and pictures inside. `notes` are lines on top."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        _summary(conversations),
        *(_section(conversation, index) for index, conversation in enumerate(conversations, 1)),
        "<p class=note>Latency: from the question's last sound to the answer's first, computing included. "
        "Real-time factor: computing time over time of audio.</p>",
        f"<script>{SCRIPT}</script></html>",
    ]
    return "\n".join(parts)


def _summary(conversations: Sequence[Conversation]) -> str:
    """All conversations as a table with links."""
    rows = "".join(
        f"<tr><td><a href='#c{index}'>{html.escape(c.name)}</a><td>{html.escape(c.transcript('user')) or '–'}"
        f"<td>{html.escape(c.transcript('model')) or '–'}<td>{latency_text(c)}<td>{c.real_time_factor:.2f}"
        for index, c in enumerate(conversations, 1)
    )
    heads = "".join(f"<th>{head}" for head in ("recording", "it heard", "it said", "latency", "real-time factor"))
    return f"<table><tr>{heads}{rows}</table>"


def latency_text(conversation: Conversation) -> str:
    """The answer's latency for people: `480 ms`, or a dash when there was no answer."""
    latency = conversation.answer_latency
    return "–" if latency is None else f"{1000 * latency:.0f} ms"


def _section(conversation: Conversation, index: int) -> str:
    """One conversation: transcripts, players, picture."""
    both = np.stack([conversation.heard, conversation.said])
    players = {"question": conversation.heard, "answer": conversation.said, "both (left: user, right: model)": both}
    sound = "".join(
        f"<label>{label}<audio controls preload=metadata "
        f"src='{_data('audio/wav', wav_bytes(samples, conversation.sample_rate))}'></audio></label>"
        for label, samples in players.items()
    )
    return (
        f"<section class=conversation data-seconds={conversation.duration:.4f} data-left={LEFT} data-right={RIGHT}>"
        f"<h2 id='c{index}'>{html.escape(conversation.name)}</h2>"
        f"<table><tr><th>it heard<td>{html.escape(conversation.transcript('user')) or '–'}"
        f"<tr><th>it said<td>{html.escape(conversation.transcript('model')) or '–'}"
        f"<tr><th>latency<td>{latency_text(conversation)}</table>"
        f"<div class=players>{sound}</div>"
        f"<div class=plot><img alt='spectrograms and tokens' src='{_data('image/png', draw(conversation))}'>"
        f"<div class=cursor></div></div></section>"
    )


def wav_bytes(samples: np.ndarray, sample_rate: int) -> bytes:
    """A 16-bit wav file in memory from float32 [samples] or [channels, samples]."""
    import wave

    channels = np.atleast_2d(samples)
    whole = (np.clip(channels, -1, 1).T * 32767).round().astype("<i2")
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(channels.shape[0])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(whole.tobytes())
    return target.getvalue()


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def draw(conversation: Conversation) -> bytes:
    """The picture as PNG: spectrograms of both channels, words where they came, a lane of colours per token stream."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    streams = {name: ids for name, ids in conversation.tokens.items() if ids.size}
    heights = [2.2, 2.2, 0.8, *(0.35 + 0.14 * min(ids.shape[1], 16) for ids in streams.values())]
    figure = Figure(figsize=(11, 0.9 + sum(heights)), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
    figure.subplots_adjust(left=LEFT, right=RIGHT, top=0.98, bottom=0.45 / (0.9 + sum(heights)), hspace=0.12)
    for axis, samples, label in (
        (axes[0], conversation.heard, "user\nkHz"),
        (axes[1], conversation.said, "model\nkHz"),
    ):
        _spectrogram(axis, samples, conversation.sample_rate)
        axis.set_ylabel(label)
        axis.axvline(conversation.question_seconds, color="#d1242f", linestyle=":", linewidth=1.2)
    _words(axes[2], conversation)
    for axis, (name, ids) in zip(axes[3:], streams.items(), strict=True):
        _tokens(axis, name, ids, conversation.frame_size / conversation.sample_rate)
    axes[-1].set_xlim(0, conversation.duration)
    axes[-1].set_xlabel("seconds")
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def _spectrogram(axis: Any, samples: np.ndarray, sample_rate: int) -> None:
    """Power in decibels, 25 ms windows every 10 ms, 80 dB deep."""
    window, hop = sample_rate // 40, sample_rate // 100
    padded = np.pad(samples, (window // 2, window))
    count = len(samples) // hop + 1
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[: count * hop : hop]
    power = 20 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) + 1e-4)
    top = max(float(power.max()), -20.0)
    extent = (0, len(samples) / sample_rate, 0, sample_rate / 2000)
    axis.imshow(power.T, origin="lower", aspect="auto", extent=extent, vmin=top - 80, vmax=top, cmap="magma")


def _words(axis: Any, conversation: Conversation) -> None:
    """What was heard (above) and what was said (below), each word where it was written."""
    axis.set_ylim(0, 2)
    axis.set_yticks([1.5, 0.5], ["heard", "text"])
    axis.tick_params(axis="y", length=0)
    for pieces, height, colour in ((conversation.user_text, 1.5, "#0550ae"), (conversation.model_text, 0.5, "#953800")):
        for seconds, text in pieces:
            axis.axvline(seconds, (height - 0.45) / 2, (height + 0.45) / 2, color=colour, linewidth=1)
            axis.text(seconds, height, f" {text.strip()}", color=colour, va="center", fontsize=9, clip_on=True)


def _tokens(axis: Any, name: str, ids: np.ndarray, frame_seconds: float) -> None:
    """Ids [frames, levels] as colours, a row for each level (the first on top); blanks and a text's pads left white."""
    shown = np.ma.masked_less(ids.T, 1 if ids.shape[1] == 1 else 0)  # id 0 of a text stream is its pad
    steps = (np.arange(ids.shape[0] + 1) + 1) * frame_seconds  # a frame's tokens come when its sound has been heard
    axis.pcolormesh(steps, np.arange(ids.shape[1] + 1), shown, cmap="turbo", rasterized=True)
    axis.invert_yaxis()
    axis.set_yticks([ids.shape[1] / 2], [f"{name}\n{ids.shape[1]} level{'s' * (ids.shape[1] > 1)}"])
    axis.tick_params(axis="y", length=0)
