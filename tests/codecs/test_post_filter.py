"""What defines ScoreDec and FlowDec: a post-filter of a codec that stays, by a diffusion run backwards or by a flow."""

import math
from itertools import count

import numpy as np
import pytest
import torch

from codec_families import narrow
from codec_parity import check_wave, speech_like
from proves import proves
from vivavoce.audio import read, resample
from vivavoce.codecs import codec_of
from vivavoce.codecs.post_filter import PostFilter, PostFilterConfig, noise
from vivavoce.codecs.post_paths import FlowPath, ScorePath
from vivavoce.errors import RecipeError
from vivavoce.nn.noise import seeded
from vivavoce.nn.spectrum_unet import SpectrumUNet, doubled, halved
from vivavoce.training.codec_task import CodecTask, in_use
from vivavoce.training.post_filter_task import PostFilterTask

NAMES = ("flowdec", "scoredec")
SMALL = {"fft_size": 62, "hop": 16, "width": 4, "multiples": (2, 1)}


@pytest.fixture(scope="module")
def speech(speech_files):
    audio = read(speech_files[0])
    samples = resample(audio.samples[:1, : 2 * audio.sample_rate], audio.sample_rate, 8000)
    return torch.from_numpy(np.ascontiguousarray(samples))[None]


@pytest.fixture(scope="module")
def codecs():
    return {name: narrow(name) for name in NAMES}


def complex_normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


# The network


@torch.no_grad()
def test_images_are_made_smaller_and_larger_by_one_smooth_filter():
    image, kernel = torch.randn(1, 2, 6, 4), np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    for found, spread, before, behind, gain in ((halved(image), 1, 1, 1, 1), (doubled(image), 2, 2, 1, 4)):
        wide = np.zeros((2, 6 * spread, 4 * spread))
        wide[:, ::spread, ::spread] = image[0]
        wide = np.pad(wide, ((0, 0), (before, behind), (before, behind)))
        step = 3 - spread
        rows, columns = ((size - 4) // step + 1 for size in wide.shape[1:])
        squares = [[one[step * i : step * i + 4, step * j : step * j + 4] for j in range(columns)]
                   for one in wide for i in range(rows)]  # fmt: skip
        by_hand = [[gain * (kernel * square).sum() for square in row] for row in squares]
        torch.testing.assert_close(found[0].flatten(0, 1), torch.tensor(by_hand, dtype=torch.float32))


@proves("scoredec", "mechanism")
@proves("flowdec", "mechanism")
def test_the_network_hears_both_spectra_and_the_time():
    torch.manual_seed(0)
    network = SpectrumUNet(8, (1, 2, 1), 2, attention=True, last_kernel=3)
    noisy, coded, times = complex_normal(2, 8, 12), complex_normal(2, 8, 12, seed=1), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        assert network(noisy, coded, times).abs().max() < 1e-3  # it begins by saying nearly nothing
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        said = network(noisy, coded, times)
        assert said.shape == noisy.shape and said.is_complex()
        for other in (network(coded, coded, times), network(noisy, noisy, times), network(noisy, coded, 1 - times)):
            assert (other - said).abs().amax((1, 2)).min() > 0.01
        torch.testing.assert_close(network(noisy[1:], coded[1:], times[1:]), said[1:])
    with pytest.raises(RecipeError, match="the kernel odd"):
        SpectrumUNet(last_kernel=2)


@proves("scoredec", "mechanism")
@proves("flowdec", "mechanism")
def test_published_sizes_of_both():
    found = {}
    for name in NAMES:
        with torch.device("meta"):
            codec = codec_of({"kind": name})
        c, weights = codec.filter.config, sum(p.numel() for p in codec.filter.network.parameters())
        found[name] = (codec.sample_rate, codec.frame_rate, codec.bits_per_second, codec.filter.path.evaluations)
        assert (c.bins, c.hop) == (768, 384) and codec.filter.spectrum.fft_size == 1534
        found[name] += (c.exponent, c.scale, round(weights / 1e6))
    assert found == {"flowdec": (48000, 75, 7500, 6, 0.3, 0.33, 24), "scoredec": (48000, 150, 24000, 60, 0.5, 0.15, 65)}


# Spectra


@proves("scoredec", "mechanism")
@proves("flowdec", "mechanism")
@torch.no_grad()
def test_spectra_are_compressed_and_come_back(speech):
    filtering = PostFilter(PostFilterConfig(**SMALL, exponent=0.4, scale=0.7))
    wave = speech[0]
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(62) / 61)
    padded = torch.nn.functional.pad(wave, (31, 31))
    plain = torch.fft.rfft(padded.unfold(-1, 62, 16) * window).transpose(1, 2)
    found = filtering.spectrum(wave)
    torch.testing.assert_close(found.abs(), 0.7 * plain.abs() ** 0.4, atol=1e-3, rtol=1e-3)
    loud = plain.abs() > 0.1
    torch.testing.assert_close((found / plain)[loud].angle(), torch.zeros(int(loud.sum())), atol=1e-4, rtol=0)
    for samples in (wave.shape[1], 1000, 17, 1):
        part = wave[:, -samples:]
        again = filtering.spectrum.back(filtering.spectrum(part), samples)
        torch.testing.assert_close(again, part, atol=1e-4, rtol=1e-4)


@proves("flowdec", "mechanism")
@torch.no_grad()
def test_scale_and_noise_are_measured_bin_by_bin(speech):
    filtering = PostFilter(PostFilterConfig(**SMALL, exponent=0.5))
    clean = speech[0, 0, :6400].view(4, -1)
    coded = clean + 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).cumsum(1)
    filtering.measure(clean, coded, quantile=1.0)
    filtering.spectrum.scale.fill_(1)
    pairs = [filtering.pair(one[None], other[None]) for one, other in zip(clean, coded)]
    apart = np.max([(a - b).abs().square().mean(-1).sqrt()[0].numpy() for a, b in pairs], 0) / 3
    weights = np.exp(-0.5 * (np.arange(-12, 13) / 3) ** 2)
    smooth = np.convolve(np.pad(apart, 12, mode="edge"), weights / weights.sum(), "valid")
    np.testing.assert_allclose(filtering.path.deviation, smooth, rtol=1e-4)
    filtering.measure(clean, coded, quantile=1.0)
    largest = max(float(filtering.pair(one[None], other[None])[0].abs().max()) for one, other in zip(clean, coded))
    assert largest == pytest.approx(1)
    with pytest.raises(RecipeError, match="cannot halve"):
        PostFilterConfig(fft_size=64, hop=16, multiples=(1, 1))


# Both paths


@proves("scoredec", "mechanism")
def test_the_diffusion_solves_its_equation():
    """Mean and variance of dx = g (y - x) dt + s(t) dw, integrated in small steps; and FlowDec's own figure."""
    path, steps = ScorePath(4, least=0.1, most=0.7, stiffness=2.0), 20000
    share, variance, size = 0.0, 0.0, 1 / steps
    for step in range(steps):
        drive = 0.1 * 7 ** ((step + 0.5) * size) * math.sqrt(2 * math.log(7))
        share, variance = share + 2 * (1 - share) * size, variance + (drive**2 - 4 * variance) * size
    clean, coded, z = (complex_normal(1, 4, 3, seed=seed) for seed in range(3))
    noisy, answer = path.lesson(clean, coded, torch.ones(1), z)
    assert torch.equal(answer, z)
    expected = (1 - share) * clean + share * coded + variance**0.5 * z
    torch.testing.assert_close(noisy, expected, atol=1e-3, rtol=1e-3)
    assert float(ScorePath(4, most=0.82).spread(torch.tensor(1.0))) == pytest.approx(0.66, abs=0.005)
    assert path.times(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.03, 1.0])


@proves("scoredec", "mechanism")
def test_the_way_back_is_that_of_predictor_and_corrector():
    path, calls = ScorePath(4, steps=5, least=0.1, most=0.7, correct=0.4), count()
    clean, coded = complex_normal(1, 4, 3, seed=1), complex_normal(1, 4, 3, seed=2)

    def exact(x, y, now):
        """The noise that leads to `clean`."""
        next(calls)
        near = torch.exp(-1.5 * now)[:, None, None]
        return (x - near * clean - (1 - near) * y) / path.spread(now)[:, None, None]

    def draw(number):
        return complex_normal(1, 4, 3, seed=100 + number)

    found = path.solve(exact, coded, draw)
    evaluations = next(calls)
    x, number = coded + float(path.spread(torch.tensor(1.0))) * draw(0), 1
    for t in torch.linspace(1, 0.03, 5):
        spread, now = float(path.spread(t)), t[None]
        score = -exact(x, coded, now) / spread
        epsilon = 2 * (0.4 * spread) ** 2
        x = x + epsilon * score + math.sqrt(2 * epsilon) * draw(number)
        g = 0.1 * 7 ** float(t) * math.sqrt(2 * math.log(7)) * math.sqrt(1 / 5)
        mean = x - 1.5 * (coded - x) / 5 - g**2 * exact(x, coded, now) / spread
        x, number = mean + g * draw(number + 1), number + 2
    torch.testing.assert_close(found, mean)
    assert evaluations == path.evaluations == 10
    far = (coded - clean).abs().mean()
    assert (ScorePath(4, steps=60).solve(exact, coded, draw) - clean).abs().mean() < 0.25 * far
    with pytest.raises(RecipeError, match="least the smaller"):
        ScorePath(4, least=1.0)


@proves("flowdec", "mechanism")
def test_the_flow_is_straight_from_coded_and_noise_to_clean():
    path = FlowPath(4, steps=3)
    path.deviation.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    clean, coded, z = (complex_normal(2, 4, 3, seed=seed) for seed in range(3))
    start = coded + torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None] * z
    times = torch.tensor([0.25, 1.0])
    noisy, velocity = path.lesson(clean, coded, times, z)
    torch.testing.assert_close(noisy[0], 0.75 * start[0] + 0.25 * clean[0])
    torch.testing.assert_close(noisy[1], clean[1])
    torch.testing.assert_close(velocity, clean - start)
    calls = count()

    def growing(x, y, now):
        """dx/dt = (1 + t) x."""
        next(calls)
        return (1 + now)[:, None, None] * x

    by_hand = {"euler": 1.0, "midpoint": 1.0}
    for step in range(3):
        t, h = step / 3, 1 / 3
        by_hand["euler"] *= 1 + h * (1 + t)
        by_hand["midpoint"] *= 1 + h * (1 + t + h / 2) * (1 + h / 2 * (1 + t))
    for solver, factor in by_hand.items():
        path = FlowPath(4, 3, solver, deviation=0.5)
        before = next(calls)
        torch.testing.assert_close(path.solve(growing, coded, lambda number: z), factor * (coded + 0.5 * z))
        assert next(calls) - before - 1 == path.evaluations == {"euler": 3, "midpoint": 6}[solver]
    with pytest.raises(RecipeError, match="midpoint"):
        FlowPath(4, solver="heun")


def test_noise_is_a_hash_of_seed_place_and_draw():
    seeds = torch.tensor([3, 9])
    drawn = noise(seeds, (16, 200), 0)
    assert drawn.abs().square().mean() == pytest.approx(1, abs=0.05) and abs(complex(drawn.mean())) < 0.05
    assert abs(complex((drawn.real * drawn.imag).mean())) < 0.05
    assert torch.equal(noise(seeds[1:], (16, 100), 0)[0], drawn[1, :, :100])
    assert not (noise(seeds, (16, 200), 1) == drawn).any() and not (drawn[0] == drawn[1]).any()


# Behind a codec


@proves("scoredec", "mechanism")
@proves("flowdec", "mechanism")
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_codec_stays_as_it_is_before_its_post_filter(codecs, name):
    codec, wave = codecs[name], speech_like(0.3, 8000)
    plain = codec_of(codec.config.codec).eval()
    plain.load_state_dict({key: value for key, value in codec.state_dict().items() if key in plain.state_dict()})
    codes = codec.encode(wave)
    assert torch.equal(plain.encode(wave), codes)
    coded = plain.decode(codes)[..., : wave.shape[-1]]
    torch.testing.assert_close(codec.coded(wave), coded)
    filtered = codec.decode(codes, torch.tensor([wave.shape[-1]]))
    alone = codec.filter.filtered(plain.decode(codes)[:, 0], torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(filtered, alone[:, None, : wave.shape[-1]])
    seven = codec.decode(codes.repeat(2, 1, 1), seeds=[7, 0])
    check_wave(seven[1:, :, : wave.shape[-1]], filtered)
    assert (seven[0] - seven[1]).abs().max() > 0.01 * seven[1].std()
    state = seeded(codec.decoder_state(1), torch.tensor([7]))
    none, state = codec.decode_step(codes, state)
    assert none.shape[-1] == 0
    check_wave(codec.decode_flush(state)[0], seven[:1])
    quiet = torch.zeros(1, dtype=torch.int64)
    check_wave(codec.filter.filtered(3 * coded[:, 0], quiet), 3 * codec.filter.filtered(coded[:, 0], quiet))


def test_only_plain_codecs_of_one_channel_are_filtered():
    for kind, options in (("semanticodec", {}), ("codec", {"channels": 2})):
        with torch.device("meta"), pytest.raises(RecipeError, match=r"codec\.codec"):
            codec_of({"kind": "post_filtered", "codec": {"kind": kind, **options}})
    with pytest.raises(RecipeError, match=r"codec\.filter"):
        codec_of({"kind": "flowdec", "filter": {"widht": 3}})
    with pytest.raises(RecipeError, match="no post-filter"):
        PostFilterTask(narrow("dmel"), [torch.zeros(1, 100)])
    with pytest.raises(RecipeError, match="through is 'unfiltered'"):
        CodecTask(narrow("dmel"), [torch.zeros(1, 100)], through="unfiltered")


@proves("scoredec", "mechanism")
@proves("flowdec", "mechanism")
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_on_codes_that_stay(name, speech):
    torch.manual_seed(0)
    codec = narrow(name)
    task = PostFilterTask(codec, [speech[0]], held_out=[speech[0, :, 4000:5000]], seconds=0.08, batch=2, counts=[2, 1],
                          measure=8 if name == "flowdec" else 0, mel={"windows": [128], "mels": [8]})  # fmt: skip
    piece, rates = speech[..., :400], set()
    for number in (1, 2):
        with in_use(codec, number):
            rates.add(float(codec.coded(piece).sum()))
    assert len(rates) == 2 and {float(task._coded(piece, step).sum()) for step in range(8)} == rates
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    optimizer = torch.optim.Adam(codec.filter.network.parameters(), 1e-2)
    first = task.evaluate(0)
    assert first == task.evaluate(1) and set(first) == {"post_filter", "mel coded", "mel"}
    codec.train()
    for step in range(15):
        ((updated, losses),) = task.updates(task.batch(step, 0, 1), step)
        assert updated == "codec"
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    codec.eval()
    last = task.evaluate(0)
    assert last["post_filter"] < 0.8 * first["post_filter"] and last["mel coded"] == first["mel coded"]
    moved = {key for key, value in codec.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all(".network." in key for key in moved)
    with torch.no_grad():
        made, heard = task.resynthesize(piece)
    assert made.shape == piece.shape and torch.equal(heard.codes, codec.encode(piece))

