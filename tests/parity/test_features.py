"""Front ends against other people's: transformers' feature extractors and kaldi-native-fbank."""

import numpy as np
import pytest
import torch

from peers import peer
from vivavoce.audio import read
from vivavoce.audio.kaldi import kaldi_fbank, kaldi_frames, kaldi_mfcc
from vivavoce.audio.mel import mel_filters
from vivavoce.audio.normalize import unit_variance
from vivavoce.audio.whisper import whisper_log_mel


def wave(samples, rate=16000, seed=0):
    """A sweep with harmonics, bursts and pauses over a noise at -60 dBFS: no band lies below float32's noise."""
    time = np.arange(samples) / rate
    floor = np.random.default_rng(seed + 9).standard_normal(samples) * 1e-3
    sweep = 0.3 * np.sin(2 * np.pi * (100 + 500 * time) * time) ** 3
    burst = np.random.default_rng(seed).standard_normal(samples) * 0.1 * (np.sin(2 * np.pi * 3 * time) > 0.3)
    return (sweep * (np.cos(2 * np.pi * 2 * time) > -0.5) + burst + floor).astype(np.float32)


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("samples", [1, 16001, 480000, 500000])
def test_whisper(mels, samples):
    transformers = peer("transformers")
    x = wave(samples)
    theirs = transformers.WhisperFeatureExtractor(feature_size=mels)(x, sampling_rate=16000, return_tensors="pt")
    ours = whisper_log_mel(torch.from_numpy(x)[None], mels)
    assert ours.shape == (1, 3000, mels)
    assert (ours - theirs.input_features.transpose(1, 2)).abs().max() < 1e-4


def test_whisper_without_padding_on_recorded_speech(speech_files):
    transformers = peer("transformers")
    x = read(speech_files[0], 16000, mono=True)
    theirs = transformers.WhisperFeatureExtractor()(
        x.samples[0], sampling_rate=16000, padding="do_not_pad", return_tensors="pt"
    )
    ours = whisper_log_mel(torch.from_numpy(x.samples), seconds=None)
    assert ours.shape[1] == len(x) // 160
    assert (ours - theirs.input_features.transpose(1, 2)).abs().max() < 1e-4


def close(ours, theirs):
    """Equal but for float32's noise, which reaches 0.01 nepers in a band 90 dB below the loudest."""
    difference = (ours - theirs).abs()
    return float(difference.max()) < 2e-2 and float(difference.mean()) < 3e-4


def kaldi_options(knf, kind, rate, mels, **more):
    options = getattr(knf, f"{kind}Options")()
    options.frame_opts.dither = 0.0
    options.frame_opts.samp_freq = rate
    options.mel_opts.num_bins = mels
    for name, value in more.items():
        group, _, field = name.rpartition("__")
        setattr(getattr(options, group) if group else options, field, value)
    return options


def kaldi_native(knf, kind, options, x, rate):
    online = getattr(knf, f"Online{kind}")(options)
    online.accept_waveform(rate, (x * 32768).tolist())
    online.input_finished()
    return torch.from_numpy(np.stack([online.get_frame(i) for i in range(online.num_frames_ready)]))


@pytest.mark.parametrize("snip", [True, False])
@pytest.mark.parametrize(
    "rate,mels,taper,fmax", [(16000, 80, "povey", 0.0), (8000, 40, "hamming", -400.0), (16000, 23, "hanning", 7600.0)]
)
def test_kaldi_fbank(rate, mels, taper, fmax, snip):
    knf = peer("kaldi_native_fbank")
    x = wave(rate * 2 + 77, rate)
    options = kaldi_options(
        knf, "Fbank", rate, mels, mel_opts__high_freq=fmax, frame_opts__window_type=taper, frame_opts__snip_edges=snip
    )
    theirs = kaldi_native(knf, "Fbank", options, x, rate)
    ours = kaldi_fbank(torch.from_numpy(x)[None], rate, mels, taper=taper, fmax=fmax, snip_edges=snip)[0]
    assert ours.shape == theirs.shape and len(ours) == kaldi_frames(len(x), rate, snip_edges=snip)
    assert theirs.std() > 2
    assert close(ours, theirs)


@pytest.mark.parametrize("use_energy", [True, False])
def test_kaldi_mfcc(use_energy):
    knf = peer("kaldi_native_fbank")
    x = wave(24000)
    theirs = kaldi_native(knf, "Mfcc", kaldi_options(knf, "Mfcc", 16000, 23, use_energy=use_energy), x, 16000)
    ours = kaldi_mfcc(torch.from_numpy(x)[None], use_energy=use_energy)[0]
    assert ours.shape == theirs.shape == (148, 13)
    assert close(ours, theirs)


def test_seamless_front_end_is_kaldis():
    transformers = peer("transformers")
    x = wave(32000)
    theirs = transformers.SeamlessM4TFeatureExtractor(stride=1)(
        x, sampling_rate=16000, do_normalize_per_mel_bins=False, return_tensors="pt"
    ).input_features[0]
    ours = kaldi_fbank(torch.from_numpy(x)[None])[0]
    assert close(ours, theirs[: len(ours)])


def test_wav2vec2_normalisation():
    transformers = peer("transformers")
    rows = [wave(9000, seed=1) + 0.2, wave(16000, seed=2), wave(1, seed=3)]
    theirs = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)(
        rows, sampling_rate=16000, padding=True, return_tensors="pt"
    )
    padded = torch.full((3, 16000), float("nan"))
    for row, x in zip(padded, rows):
        row[: len(x)] = torch.from_numpy(x)
    ours = unit_variance(padded, theirs.attention_mask.sum(1))
    assert (ours - theirs.input_values).abs().max() < 1e-4


@pytest.mark.parametrize("scale,norm", [("htk", None), ("slaney", None), ("slaney", "slaney")])
@pytest.mark.parametrize(
    "rate,mels,fmin,fmax", [(16000, 40, 0.0, 4000.0), (24000, 100, 0.0, 12000.0), (22050, 80, 55.0, 7600.0)]
)
def test_mel_filters(scale, norm, rate, mels, fmin, fmax):
    audio_utils = peer("transformers.audio_utils")
    theirs = audio_utils.mel_filter_bank(513, mels, fmin, fmax, rate, norm, scale).T
    ours = mel_filters(rate, 1024, mels, fmin, fmax, scale=scale, area=norm is not None)
    assert np.abs(ours - theirs).max() < 1e-6 * max(1.0, theirs.max())
