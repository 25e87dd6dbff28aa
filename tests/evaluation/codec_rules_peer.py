"""The values in codec_rules.json, from the packages that Codec-SUPERB and VERSA call, put together as those do.

    python tests/evaluation/codec_rules_peer.py PACK > tests/evaluation/codec_rules.json

Needs numpy, scipy, torch, soundfile, descript-audiotools 0.7.2, julius 0.2.8, librosa 0.11.0, praat-parselmouth 0.4.7,
pesq 0.0.4, pystoi 0.4.1, pyworld 0.3.5, pysptk 1.0.1, fast-bss-eval 0.1.4. Nothing of vivavoce is used; definitions:
voidful/Codec-SUPERB @033a4e79 SoundCodec/metrics.py; wavlab-speech/versa @20e155d4, @03445859, @03ccbda3.
"""

import json
import sys
from pathlib import Path

import numpy as np

CLIPS = ("audio/vctk/p225_003.flac", "audio/an4/an251-fash-b.flac", "audio/ljspeech/LJ001-0002.flac")
RATES = (16000, 24000, 8000)  # of the signals that are compared; the recordings have 16,000 Hz


def pair(samples, rate):
    """A recording [samples] at 16 kHz, cut, as if at `rate`, and the same coarser: what every test compares."""
    reference = np.asarray(samples[:40000], np.float32)
    noise = np.random.default_rng(0).standard_normal(len(reference))
    smooth = np.convolve(reference, [0.25, 0.5, 0.25])[1:-1]
    estimate = smooth + 0.3 * noise * np.sqrt(np.mean(reference**2)) * (np.abs(smooth) > 0.02) + 0.001
    return reference, np.asarray(np.round(estimate * 512) / 512, np.float32)


def codec_superb(reference, estimate, rate):
    import librosa
    import parselmouth
    import torch
    from audiotools import AudioSignal
    from pesq import pesq

    x, y = (AudioSignal(torch.from_numpy(each)[None, None], rate) for each in (reference, estimate))
    l1, clamp = torch.nn.L1Loss(), 1e-5
    stft = mel = 0.0
    for window, bands in ((2048, 150), (512, 80)):
        for each in (x, y):
            each.stft(window, window // 4, None)
        logs = [each.magnitude.clamp(clamp).pow(2).log10() for each in (x, y)]
        stft += float(l1(*logs) + l1(x.magnitude, y.magnitude))
        shape = {"window_length": window, "hop_length": window // 4, "window_type": None}
        mels = [each.mel_spectrogram(bands, mel_fmin=0.0, mel_fmax=None, **shape) for each in (x, y)]
        mel += float(l1(*[each.clamp(clamp).pow(2).log10() for each in mels]) + l1(*mels))
    wide = [each.clone().resample(16000).audio_data[0, 0].numpy() for each in (x, y)]
    cents = []
    for each in (reference, estimate):
        sound = parselmouth.Sound(each, 22050)
        pitch = sound.to_pitch_ac(time_step=256 / 22050, voicing_threshold=0.6, pitch_floor=50, pitch_ceiling=1100)
        hertz = pitch.selected_array["frequency"]
        voiced = 1200 * np.log2(hertz[hertz != 0] / 440)
        cents.append(voiced - np.median(voiced))
    _, path = librosa.sequence.dtw(*cents, backtrack=True)
    warped = [np.float32([track[at[side]] for at in path]) for side, track in enumerate(cents)]
    return {
        "mel": mel,
        "stft": stft,
        "pesq": pesq(16000, *wide, "wb"),
        "stoi": stoi_of_codec_superb(reference, estimate, rate),
        "f0corr": float(np.corrcoef(*warped)[0, 1]),
    }


def stoi_of_codec_superb(x, y, rate):
    """Frame by frame and segment by segment, with scipy's own transform."""
    from scipy import signal

    size, hop, span = 256, 128, 30
    x, y = (signal.resample_poly(each, 10000, rate) for each in (x, y))
    hann = signal.windows.hann(size + 2)[1:-1]
    starts = range(0, len(x) - size, hop)
    frames = [x[np.arange(start - 1, start + size - 1)] * hann for start in starts]
    levels = np.array([20 * np.log10(np.linalg.norm(frame) / np.sqrt(size) + 1e-10) for frame in frames])
    loud = [s for s, level in zip(starts, levels) if level - levels.max() + 40 > 0]
    kept = []
    for each in (x, y):
        speech = np.zeros(len(each))
        for number, start in enumerate(loud):
            speech[number * hop : number * hop + size] += each[start : start + size] * hann
        kept.append(speech[: (len(loud) - 1) * hop + size])
    edges = np.linspace(0, 10000, 513)[:257]
    bands = np.zeros((15, 257))
    for band in range(15):
        low, high = (np.argmin((edges - 150 * 2 ** ((2 * band + side) / 6)) ** 2) for side in (-1, 1))
        bands[band, low:high] = 1
    spectra = []
    for each in kept:
        shape = {"window": hann, "nperseg": size, "noverlap": hop, "nfft": 512, "boundary": None}
        whole = signal.stft(each, return_onesided=False, **shape)
        frames = whole[2].T[: int((len(each) - size) / hop), :257].T
        spectra.append(np.sqrt(bands @ np.abs(frames) ** 2))
    values = []
    for end in range(span, spectra[0].shape[1] + 1):
        a, b = (each[:, end - span : end] for each in spectra)
        b = b * np.sqrt((a**2).sum(1, keepdims=True) / ((b**2).sum(1, keepdims=True) + 1e-10))
        b = np.minimum(b, a + a * 10 ** (15 / 20))
        values.append(np.mean([np.corrcoef(a[band], b[band])[0, 1] for band in range(15)]))
    return float(np.clip(np.mean(values), 0, 1))


def versa(reference, estimate, rate):
    import fast_bss_eval
    import librosa
    import pysptk
    import pyworld
    import torch
    from pesq import pesq
    from pystoi import stoi
    from scipy.signal import firwin, lfilter
    from scipy.stats import pearsonr

    tracks, cepstra = [], []
    for each in (reference, estimate):
        x = lfilter(firwin(255, 70 / (rate // 2), pass_zero=False), 1, each.astype(np.float64) * 32767)
        f0, times = pyworld.harvest(x, rate, f0_floor=40, f0_ceil=800, frame_period=5)
        tracks.append(f0)
        cepstra.append(pysptk.sp2mc(pyworld.cheaptrick(x, f0, times, rate, fft_size=1024), 39, 0.466))
    heard = [reference, estimate]
    if rate != 8000:
        heard = [librosa.resample(each, orig_sr=rate, target_sr=16000) if rate != 16000 else each for each in heard]
    loss = fast_bss_eval.si_sdr_loss(
        est=torch.from_numpy(estimate)[None], ref=torch.from_numpy(reference)[None], zero_mean=None, clamp_db=None,
        pairwise=False,
    )  # fmt: skip
    return {
        "stoi": stoi(reference, estimate, rate, extended=False),
        "estoi": stoi(reference, estimate, rate, extended=True),
        "pesq": pesq(8000, *heard, "nb") if rate == 8000 else pesq(16000, *heard, "wb"),
        "si_snr": -float(loss),
        "mcd": float(np.mean(10 / np.log(10) * np.sqrt(2 * ((cepstra[1] - cepstra[0]) ** 2).sum(1)))),
        "f0rmse": float(np.sqrt(np.mean((tracks[1] - tracks[0]) ** 2))),
        "f0corr": float(pearsonr(tracks[1], tracks[0])[0]),
    }


def main():
    import soundfile

    found = []
    for clip, rate in zip(CLIPS, RATES):
        both = pair(soundfile.read(Path(sys.argv[1]) / clip, dtype="float32")[0], rate)
        rules = {"codec-superb": codec_superb(*both, rate), "versa": versa(*both, rate)}
        found.append({"clip": clip, "rate": rate, **rules})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
