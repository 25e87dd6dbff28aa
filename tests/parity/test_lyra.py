"""Lyra V2 against LiteRT's reference kernels: random weights in the form of its files, and the published files.

The reference is OpResolverType.BUILTIN_REF. LiteRT's default kernels round otherwise; how far they agree with the same
reference is printed beside, in `make check-long`.
"""

import json
import os

import numpy as np
import pytest
import torch

from codec_parity import speech_like
from lyra_models import write_lyra
from peers import peer
from proves import proves
from vivavoce import read
from vivavoce.codecs.lyra import DECODER, ENCODER, QUANTIZER
from vivavoce.tokenizers import load_tokenizer

litert = peer("ai_edge_litert.interpreter")

REFERENCE = "BUILTIN_REF"
LONG = os.environ.get("VIVAVOCE_LONG") == "1"
SPEAKERS, SECONDS = 10, 6.4 if LONG else 1.6


class Theirs:
    """The three files in LiteRT; a call is a frame."""

    def __init__(self, folder, kernels: str):
        options = {"experimental_op_resolver_type": getattr(litert.OpResolverType, kernels), "num_threads": 1}
        names = (ENCODER, QUANTIZER, DECODER)
        self.models = {name: litert.Interpreter(str(folder / name), **options) for name in names}

    def _run(self, name: str, frames: np.ndarray) -> np.ndarray:
        model = self.models[name]
        model.allocate_tensors()
        (source,), (target,) = model.get_input_details(), model.get_output_details()
        found = []
        for frame in frames:
            model.set_tensor(source["index"], frame.reshape(source["shape"]))
            model.invoke()
            found.append(model.get_tensor(target["index"]).flatten())
        return np.stack(found)

    def features(self, wave: torch.Tensor, hop: int) -> np.ndarray:
        return self._run(ENCODER, wave.numpy().reshape(-1, hop))

    def codes(self, features: np.ndarray, count: int) -> np.ndarray:
        run = self.models[QUANTIZER].get_signature_runner("encode")
        (name,) = [key for key, detail in run.get_output_details().items() if len(detail["shape"]) == 3]
        found = [run(input_frames=frame[None, None], num_quantizers=np.int32(count))[name] for frame in features]
        return np.stack([codes.flatten() for codes in found], 1)

    def wave(self, codes: np.ndarray) -> np.ndarray:
        """codes [K, T], -1 where a level is left out."""
        run = self.models[QUANTIZER].get_signature_runner("decode")
        (name,) = run.get_output_details()
        frames = [run(encoding_indices=column[:, None, None].astype(np.int32))[name].flatten() for column in codes.T]
        return self._run(DECODER, np.stack(frames)).flatten()


def ratio(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Signal to noise in dB."""
    noise = float(((ours - theirs) ** 2).sum())
    return 10 * np.log10(float((theirs**2).sum()) / noise) if noise else float("inf")


def compare(folder, wave: torch.Tensor, others: tuple[str, ...] = ()) -> np.ndarray:
    """All levels of the codes of a wave [1, 1, S] of whole frames, and the sound of the reference's codes."""
    codec = load_tokenizer(folder)
    codec.codebooks = count = codec.quantizer.codebooks
    reference = Theirs(folder, REFERENCE)
    features = reference.features(wave, codec.hop)
    theirs = reference.codes(features, count)
    sound = reference.wave(theirs)
    ours = codec.encode(wave)[0].numpy()
    equal = float((ours == theirs).mean())
    spoken = codec.decode(torch.from_numpy(theirs)[None].long())[0, 0].numpy()
    noise = ratio(spoken, sound)
    print(f"{theirs.size} codes: {equal:.3%} equal, waveform {noise:.0f} dB")
    for kernels in others:
        other = Theirs(folder, kernels)
        found = other.codes(other.features(wave, codec.hop), count)
        level = [float((found[:n] == theirs[:n]).mean()) for n in (16, 30, 46)]
        print(f"{kernels}: {level} equal at 16, 30, 46 levels; waveform {ratio(other.wave(theirs), sound):.0f} dB")
    assert equal >= 0.999 and noise > 40
    return theirs


@proves("soundstream", "weights")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_weights_as_the_reference(tmp_path, seed):
    """A small model in the form of the published files, operator by operator."""
    wave = 4 * speech_like(2, 16000, seed=seed)
    write_lyra(tmp_path, wave, seed=10 * seed)
    theirs = compare(tmp_path, wave)
    assert len({(level, entry) for level, row in enumerate(theirs.tolist()) for entry in row}) > 100


@proves("soundstream", "weights")
def test_fewer_codebooks_as_the_reference(tmp_path):
    wave = 4 * speech_like(1, 16000)
    write_lyra(tmp_path, wave)
    codec, reference = load_tokenizer(tmp_path, codebooks=7), Theirs(tmp_path, REFERENCE)
    theirs = reference.codes(reference.features(wave, codec.hop), 7)
    assert (theirs[7:] == -1).all()
    codes = codec.encode(wave)
    assert (codes[0].numpy() == theirs[:7]).mean() >= 0.999
    assert ratio(codec.decode(codes)[0, 0].numpy(), reference.wave(theirs)) > 40


def test_published_weights_as_the_reference(pack):
    """Recorded speech of ten speakers, a quarter of a minute; more than a minute in `make check-long`."""
    folder = pack / "lyra_v2"
    if not folder.is_dir():
        pytest.skip("no lyra_v2 in the recorded-speech pack")
    rows = [json.loads(line) for line in (pack / "manifests" / "librispeech_tc100.jsonl").read_text().splitlines()]
    clips = {row["speaker"]: row["audio"] for row in rows if row["duration"] >= SECONDS}
    parts = []
    for audio in list(clips.values())[:SPEAKERS]:
        clip = read(pack / audio)
        assert clip.sample_rate == 16000
        parts.append(torch.from_numpy(clip.samples[0, : int(SECONDS * 16000)]))
    wave = torch.cat(parts)[None, None]
    assert len(clips) >= SPEAKERS and wave.shape[-1] >= 10 * SECONDS * 16000
    theirs = compare(folder, wave, others=("AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES") if LONG else ())
    assert len({(level, entry) for level, row in enumerate(theirs.tolist()) for entry in row}) > 700
