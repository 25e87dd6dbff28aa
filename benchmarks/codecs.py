"""Codecs against their peers: seconds for a whole signal, milliseconds for a streamed frame, the price of lockstep.

    python benchmarks/codecs.py [--only dac snac] [--seconds 10] [--rounds 7] [--threads 1 2] [--cpu-time]
                                [--output table.md]

Ours and the peers run in one process, interleaved round by round; medians are reported. Random weights at the published
sizes, as each begins with them: speed does not depend on them. Needs `pip install --no-deps -r tests/peers.txt` and the
extra `hub`.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import Table, machine

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "shims"))

from vivavoce.codecs import PUBLISHED_DAC, PUBLISHED_SNAC, codec_of
from vivavoce.vocoders.vocos import Vocos, VocosConfig

TARGETS = {"Mimi encode": 1.3, "Mimi decode": 1.3, "Mimi encode, streaming": 1.5, "Mimi decode, streaming": 1.5,
           "EnCodec encode": 1.3, "EnCodec decode": 1.3, "DAC encode": 1.2, "DAC decode": 1.2,
           "SNAC encode": 1.3, "SNAC decode": 1.3, "Vocos": 1.3}
Runs = dict[str, dict[str, Callable[[], object]]]


def ours(name: str):
    """Our codec at its published size; eight codebooks, where it is Mimi or EnCodec."""
    codec = codec_of({"kind": name}).eval()
    if name in ("mimi", "encodec-24khz"):
        codec.codebooks = 8
    return codec


def whole_mimi(seconds: float) -> Runs:
    """Ten seconds (or as many as asked) in one call."""
    from moshi.models.loaders import get_mimi
    from transformers import MimiConfig, MimiModel

    codec, moshi, theirs = ours("mimi"), get_mimi(None, num_codebooks=8), MimiModel(MimiConfig()).eval()
    wave = 0.1 * torch.randn(1, 1, int(24000 * seconds))
    codes = torch.randint(2048, (1, 8, int(12.5 * seconds)))
    return {
        "Mimi encode": {
            "vivavoce": lambda: codec.encode(wave),
            "moshi": lambda: moshi.encode(wave),
            "transformers": lambda: theirs.encode(wave, num_quantizers=8),
        },
        "Mimi decode": {
            "vivavoce": lambda: codec.decode(codes),
            "moshi": lambda: moshi.decode(codes),
            "transformers": lambda: theirs.decode(codes),
        },
    }


def whole_encodec(seconds: float) -> Runs:
    """6 kb/s, eight codebooks."""
    from encodec import EncodecModel
    from transformers import EncodecConfig
    from transformers import EncodecModel as TransformersEncodec

    codec, theirs = ours("encodec-24khz"), TransformersEncodec(EncodecConfig()).eval()
    package = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    package.set_target_bandwidth(6.0)
    for layer in package.quantizer.vq.layers:
        layer._codebook.inited.fill_(1)
    wave = 0.1 * torch.randn(1, 1, int(24000 * seconds))
    codes = torch.randint(1024, (1, 8, int(75 * seconds)))
    return {
        "EnCodec encode": {
            "vivavoce": lambda: codec.encode(wave),
            "encodec": lambda: package.encode(wave),
            "transformers": lambda: theirs.encode(wave, bandwidth=6.0),
        },
        "EnCodec decode": {
            "vivavoce": lambda: codec.decode(codes),
            "encodec": lambda: package.decode([(codes, None)]),
            "transformers": lambda: theirs.decode(codes[None], [None]),
        },
    }


def whole_dac(seconds: float) -> Runs:
    """24 kHz, all 32 codebooks."""
    from dac.model import DAC
    from transformers import DacConfig, DacModel

    sizes = PUBLISHED_DAC["dac-24khz"]
    codec, books = ours("dac-24khz"), sizes["codebooks"]
    package = DAC(
        encoder_rates=sizes["encoder_rates"], decoder_rates=sizes["decoder_rates"], n_codebooks=books,
        sample_rate=24000,
    ).eval()
    config = DacConfig(downsampling_ratios=sizes["encoder_rates"], n_codebooks=books, sampling_rate=24000)
    theirs = DacModel(config).eval()
    frames = int(24000 * seconds) // codec.hop
    wave = 0.1 * torch.randn(1, 1, frames * codec.hop)
    codes = torch.randint(1024, (1, books, frames))
    return {
        "DAC encode": {
            "vivavoce": lambda: codec.encode(wave),
            "descript": lambda: package.encode(wave),
            "transformers": lambda: theirs.encode(wave),
        },
        "DAC decode": {
            "vivavoce": lambda: codec.decode(codes),
            "descript": lambda: package.decode(package.quantizer.from_codes(codes)[0]),
            "transformers": lambda: theirs.decode(audio_codes=codes),
        },
    }


def whole_snac(seconds: float) -> Runs:
    """24 kHz, three levels."""
    from snac import SNAC

    sizes = dict(PUBLISHED_SNAC["snac-24khz"])
    codec, package = ours("snac-24khz"), SNAC(sampling_rate=sizes.pop("sample_rate"), **sizes).eval()
    wave = 0.1 * torch.randn(1, 1, int(24000 * seconds))
    codes, listed = codec.encode(wave), package.encode(wave)
    return {
        "SNAC encode": {"vivavoce": lambda: codec.encode(wave), "snac": lambda: package.encode(wave)},
        "SNAC decode": {"vivavoce": lambda: codec.decode(codes), "snac": lambda: package.decode(listed)},
    }


def whole_vocos(seconds: float) -> Runs:
    """Mel frames of 24 kHz to waveform."""
    from vocos.heads import ISTFTHead
    from vocos.models import VocosBackbone

    sizes = VocosConfig()
    vocoder = Vocos(sizes).eval()
    body = VocosBackbone(sizes.inputs, sizes.width, sizes.hidden, sizes.layers).eval()
    head = ISTFTHead(sizes.width, sizes.fft_size, sizes.hop, sizes.padding).eval()
    frames = torch.randn(1, int(sizes.sample_rate * seconds) // sizes.hop + 1, sizes.inputs)
    theirs = frames.transpose(1, 2).contiguous()
    return {"Vocos": {"vivavoce": lambda: vocoder(frames), "vocos": lambda: head(body(theirs))}}


def streamed_mimi(rows: int = 1) -> Runs:
    """Frames of 80 ms, after the attention's context of 10 s has filled."""
    from moshi.models.loaders import get_mimi

    codec, moshi = ours("mimi"), get_mimi(None, num_codebooks=8)
    frame = 0.1 * torch.randn(rows, 1, 1920)
    codes = torch.randint(2048, (rows, 8, 1))
    moshi.streaming_forever(rows)
    state = {"encoder": codec.encoder_state(rows), "decoder": codec.decoder_state(rows)}

    def encode() -> None:
        _, state["encoder"] = codec.encode_step(frame, state["encoder"], consume=True)

    def decode() -> None:
        _, state["decoder"] = codec.decode_step(codes, state["decoder"], consume=True)

    _, state["encoder"] = codec.encode_step(frame.repeat(1, 1, 130), state["encoder"])
    _, state["decoder"] = codec.decode_step(codes.repeat(1, 1, 130), state["decoder"])
    name = ", streaming" if rows == 1 else f", {rows} rows in lockstep"
    return {
        f"Mimi encode{name}": {"vivavoce": encode, "moshi": lambda: moshi.encode(frame)},
        f"Mimi decode{name}": {"vivavoce": decode, "moshi": lambda: moshi.decode(codes)},
    }


WHOLE: dict[str, Callable[[float], Runs]] = {
    "mimi": whole_mimi, "encodec": whole_encodec, "dac": whole_dac, "snac": whole_snac, "vocos": whole_vocos,
}  # fmt: skip


def measure(runs: Runs, rounds: int, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
    """Median seconds of every run, one after the other in every round; the first round warms up."""
    times: dict[str, dict[str, list[float]]] = {what: {who: [] for who in each} for what, each in runs.items()}
    for number in range(rounds + 1):
        for what, each in runs.items():
            for who, run in each.items():
                start = clock()
                run()
                if number:
                    times[what][who].append(clock() - start)
    return {what: {who: statistics.median(t) for who, t in each.items()} for what, each in times.items()}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=WHOLE, default=list(WHOLE), help="models")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the whole signals")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=8, help="streams in one lockstep step")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: on a busy machine, one thread")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    clock = time.process_time if options.cpu_time else time.perf_counter
    table = Table(
        f"{machine()}, float32, medians of {options.rounds}{' (processor time)' if options.cpu_time else ''}",
        ["what", "threads", "vivavoce", "peers", "times the faster peer", "target"],
    )
    parts: list[tuple[Callable[[], Runs], int]] = [
        (lambda make=WHOLE[name]: make(options.seconds), options.rounds) for name in options.only
    ]
    if "mimi" in options.only:
        parts += [(streamed_mimi, 5 * options.rounds), (lambda: streamed_mimi(options.rows), options.rounds)]
    single: dict[tuple[str, int], float] = {}
    for make, rounds in parts:
        runs = make()
        for threads in options.threads:
            torch.set_num_threads(threads)
            for what, times in measure(runs, rounds, clock).items():
                table.add(*cells(what, threads, times))
                direction, _, manner = what.partition(", ")
                if manner == "streaming":
                    single[direction, threads] = times["vivavoce"]
                elif manner:
                    share = times["vivavoce"] / (options.rows * single[direction, threads])
                    name = f"{direction}, {options.rows} rows against {options.rows} single steps"
                    table.add(name, threads, f"{share:.0%} of the time", "", "", "")
        del runs
        gc.collect()
    table.write(options.output)


def cells(what: str, threads: int, times: dict[str, float]) -> tuple[object, ...]:
    """Of a line of the table."""
    peers = {who: seconds for who, seconds in times.items() if who != "vivavoce"}
    listed = ", ".join(f"{who} {shown(seconds)}" for who, seconds in peers.items())
    ratio = min(peers.values()) / times["vivavoce"]
    return what, threads, shown(times["vivavoce"]), listed, f"{ratio:.2f}", TARGETS.get(what, "")


def shown(seconds: float) -> str:
    """Seconds, or milliseconds below a half."""
    return f"{seconds:.2f} s" if seconds >= 0.5 else f"{1000 * seconds:.0f} ms"


if __name__ == "__main__":
    main()
