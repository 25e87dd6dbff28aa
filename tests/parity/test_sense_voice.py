"""SenseVoice's encoder: our forward pass with weights and statistics as FunASR keeps them gives FunASR's frames."""

import copy
import importlib
import sys
from types import ModuleType
from unittest import mock

import pytest
import torch
import yaml

from peers import peer_path
from ssl_models import agree
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.sense_voice import SenseVoice, SenseVoiceConfig
from vivavoce.errors import CheckpointError, RecipeError

SIZES = {"output_size": 32, "attention_heads": 4, "linear_units": 48, "num_blocks": 3, "tp_blocks": 2,
         "kernel_size": 5, "input_layer": "pe", "pos_enc_class": "SinusoidalPositionEncoder",
         "normalize_before": True, "sanm_shfit": 0, "selfattention_layer_type": "sanm"}  # fmt: skip
FRONT = {"fs": 16000, "window": "hamming", "n_mels": 20, "frame_length": 25, "frame_shift": 10, "lfr_m": 7, "lfr_n": 6}
NEEDED = ("models.sense_voice.model", "frontends.wav_frontend")
ELSEWHERE = ("utils.load_utils", "utils.datadir_writer", "metrics.compute_acc", "losses.label_smoothing_loss",
             "models.ctc.ctc", "models.paraformer.search", "models.sense_voice.utils.ctc_alignment",
             "frontends.eend_ola_feature")  # fmt: skip  # what their encoder does not need, and imports more


@pytest.fixture(scope="module")
def theirs():
    """FunASR's encoder and front end, without the rest, which takes ten seconds and other packages to import."""
    package = ModuleType("funasr")
    package.__path__ = [peer_path("funasr")]
    sys.modules |= {"funasr": package, **{f"funasr.{name}": mock.MagicMock() for name in ELSEWHERE}}
    yield [importlib.import_module(f"funasr.{name}") for name in NEEDED]
    for name in [name for name in sys.modules if name.split(".")[0] == "funasr"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def published(theirs, tmp_path_factory):
    """A small SenseVoiceSmall in a directory of FunASR's: the directory, their encoder, table and front end."""
    folder = tmp_path_factory.mktemp("sense-voice")
    model, frontend = theirs
    torch.manual_seed(0)
    encoder = model.SenseVoiceEncoderSmall(input_size=140, **SIZES).eval()
    table = torch.nn.Embedding(16, 140)
    for parameter in encoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({**state, "embed.weight": table.weight.data, "ctc.ctc_lo.bias": torch.zeros(7)}, folder / "model.pt")
    shift, scale = -torch.rand(140) - 8, 0.2 + 0.1 * torch.rand(140)
    lines = ["<Nnet>", "<Splice> 140 140", "[ 0 ]"]
    for name, values in (("AddShift", shift), ("Rescale", scale)):
        numbers = " ".join(f"{value:.9g}" for value in values.tolist())
        lines += [f"<{name}> 140 140", f"<LearnRateCoef> 0 [ {numbers} ]"]
    (folder / "am.mvn").write_text("\n".join([*lines, "</Nnet>", ""]))
    said = {"encoder": "SenseVoiceEncoderSmall", "encoder_conf": SIZES, "frontend_conf": FRONT}
    (folder / "config.yaml").write_text(yaml.safe_dump(said))
    front = frontend.WavFrontend(cmvn_file=str(folder / "am.mvn"), dither=0.0, **FRONT)
    return folder, encoder, table, front


@torch.no_grad()
@pytest.mark.parametrize("queries", [(0, 1, 2, 15), ()])
def test_frames_are_funasrs(published, queries):
    folder, encoder, table, front = published
    encoder = copy.deepcopy(encoder)
    ours = build_encoder({"kind": "sense_voice", "source": str(folder), "allow_pickle": True, "queries": list(queries)})
    waves = [0.1 * torch.randn(size) for size in (16000, 9601, 400, 3000, 7120)]
    last, every = ours.features(waves), ours.features(waves, layer="all")
    layers = []
    for block in [*encoder.encoders0, *encoder.encoders, *encoder.tp_encoders]:
        block.register_forward_hook(lambda m, given, out: layers.append(out[0]))
    assert ours.frame_rate == pytest.approx(50 / 3) and every.values.shape[1] == ours.layers + 1 == 5
    for row, wave in enumerate(waves):
        stacks, counts = front(wave[None], torch.tensor([len(wave)]))
        heard, _ = ours.stacked(wave[None], torch.tensor([len(wave)]))
        assert int(counts[0]) == last.lengths[row] == stacks.shape[1]
        torch.testing.assert_close(heard, stacks, rtol=1e-4, atol=2e-4)
        asked = table(torch.tensor(queries, dtype=torch.long))[None]
        layers.clear()
        x = torch.cat([asked, heard], dim=1)
        found, _ = encoder(x, torch.tensor([x.shape[1]]))
        agree(last.values[row : row + 1, : counts[0]], found[:, len(queries) :])
        agree(every.values[row, :, : counts[0]], torch.cat(layers)[:, len(queries) :])


def test_what_does_not_fit_is_said(published, tmp_path):
    folder, *_ = published
    with pytest.raises(CheckpointError, match="allow_pickle"):
        build_encoder({"kind": "sense_voice", "source": str(folder)})
    with pytest.raises(RecipeError, match="width beside"):
        build_encoder({"kind": "sense_voice", "source": str(folder), "width": 3})
    with pytest.raises(RecipeError, match="queries: 16"):
        build_encoder({"kind": "sense_voice", "queries": [16]})
    for name in ("config.yaml", "am.mvn", "model.pt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    options = {"kind": "sense_voice", "source": str(tmp_path), "allow_pickle": True}
    for name, text, message in (
        ("am.mvn", "<AddShift> [ 1 2 ]", "2 values behind <AddShift>, the config says 140"),
        ("am.mvn", "<Rescale> [ 1 2 ]", "no values behind <AddShift>"),
        ("config.yaml", "encoder: SANMEncoder", "'SANMEncoder' is not"),
        ("config.yaml", "{encoder: SenseVoiceEncoderSmall, encoder_conf: {}}", "lacks output_size"),
        ("config.yaml", "{encoder: SenseVoiceEncoderSmall, encoder_conf: {sanm_shfit: 5}}", "sanm_shfit=5"),
    ):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match=message):
            build_encoder(options)
        (tmp_path / name).write_bytes(before)


def test_published_sizes():
    """As many weights as the published one has without its head for text: 234 million with it."""
    with torch.device("meta"):
        model = SenseVoice(SenseVoiceConfig())
    assert model.layers == 69 and round(sum(p.numel() for p in model.parameters()) / 1e6) == 221
