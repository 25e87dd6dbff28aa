"""CosyVoice 2's flow matching and HiFT: ours against the copy in chatterbox-tts, on random weights in its format."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from codec_parity import check_wave, speech_like
from peers import peer
from proves import proves
from vivavoce.audio.mel import mel_filters
from vivavoce.codecs.semantic import SemanticCodec, SemanticConfig
from vivavoce.errors import CheckpointError
from vivavoce.nn.chance import normal
from vivavoce.nn.noise import seeded
from vivavoce.tokenizers.load import load_tokenizer
from vivavoce.vocoders.cosyvoice_weights import fill_flow, fill_hift
from vivavoce.vocoders.flow_matching import FlowConfig, TokenToMel
from vivavoce.vocoders.hift import HiFT, HiFTConfig
from vivavoce.vocoders.mel import vocoder_mel

FLOW = dict(
    tokens=50, heads=2, feedforward=24, layers=1, channels=16, estimator_heads=2, head_dim=4, blocks=2, middle=2
)
STAGES = {"source_resblock_kernel_sizes": [7, 7, 11], "source_resblock_dilation_sizes": [[1, 3, 5]] * 3}


class Settings(dict):
    __getattr__ = dict.__getitem__


@pytest.fixture(scope="module")
def theirs():
    """Modules of the package's folder, without what its `__init__` imports; what is named but not used stands in."""
    spec = importlib.util.find_spec("chatterbox") or peer("chatterbox").__spec__
    folder = Path(spec.origin).parent
    stand_ins = {"chatterbox.models.utils": {"AttrDict": Settings}, "omegaconf": {"DictConfig": dict},
                 "conformer": {"ConformerBlock": torch.nn.Module}}  # fmt: skip
    packages = {"chatterbox": folder, "chatterbox.models": folder / "models"}
    packages["chatterbox.models.s3gen"] = folder / "models" / "s3gen"
    with pytest.MonkeyPatch.context() as patch:
        for name in (*packages, *stand_ins):
            patch.setitem(sys.modules, name, ModuleType(name))
            vars(sys.modules[name]).update(stand_ins.get(name, {}))
        for name, place in packages.items():
            sys.modules[name].__path__ = [str(place)]
        yield lambda name: importlib.import_module(f"chatterbox.models.s3gen.{name}")
        for name in [name for name in sys.modules if name.startswith("chatterbox.models.s3gen.")]:
            del sys.modules[name]


@torch.no_grad()
def opened(model):
    """Every weight random, gains near one."""
    for name, parameter in model.named_parameters():
        if "alpha" in name:
            parameter.uniform_(0.5, 2)
        elif parameter.dim() == 1:
            parameter.normal_(mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
        elif "pos_bias" in name:
            parameter.normal_(std=0.2)
        elif name.endswith("original0"):
            parameter.uniform_(0.5, 1)
    return model.eval()


def their_hift(theirs, inputs=8, width=16, harmonics=3, pitch=12):
    predictor = theirs("f0_predictor").ConvRNNF0Predictor(1, inputs, pitch)
    return theirs("hifigan").HiFTGenerator(
        in_channels=inputs, base_channels=width, nb_harmonics=harmonics, sampling_rate=24000, upsample_rates=[8, 5, 3],
        upsample_kernel_sizes=[16, 11, 7], **STAGES, f0_predictor=predictor,
    )  # fmt: skip


def their_flow(theirs, tokens=50, heads=2, inner=24, layers=1, channels=16, each=2, head_dim=4, blocks=2, middle=2):
    encoder = theirs("transformer.upsample_encoder").UpsampleConformerEncoder(
        input_size=512, output_size=512, attention_heads=heads, linear_units=inner, num_blocks=layers,
        input_layer="linear", pos_enc_layer_type="rel_pos_espnet", selfattention_layer_type="rel_selfattn",
        use_cnn_module=False, macaron_style=False,
    )  # fmt: skip
    estimator = theirs("decoder").ConditionalDecoder(
        in_channels=320, out_channels=80, causal=True, channels=[channels], dropout=0.0, attention_head_dim=head_dim,
        n_blocks=blocks, num_mid_blocks=middle, num_heads=each, act_fn="gelu",
    )  # fmt: skip
    parameters = theirs("configs").CFM_PARAMS
    decoder = theirs("flow_matching").CausalConditionalCFM(
        spk_emb_dim=80, cfm_params=parameters, estimator=estimator
    )
    return theirs("flow").CausalMaskedDiffWithXvec(vocab_size=tokens, encoder=encoder, decoder=decoder)


@proves("cosyvoice2-s3-v2", "weights", "outputs")
@torch.no_grad()
def test_hift(theirs):
    """The same waveform of the same mel frames and excitation, whose noise is drawn elsewhere there."""
    torch.manual_seed(0)
    published = opened(their_hift(theirs))
    ours = HiFT(HiFTConfig(inputs=8, width=16, harmonics=3, pitch_width=12)).eval()
    fill_hift(ours, published.state_dict(), "hift.pt")
    mel = torch.randn(2, 20, 8)
    hertz = published.f0_predictor(mel.transpose(1, 2))
    torch.testing.assert_close(ours.pitch(mel)[..., 0], hertz)
    excitation = ours.source.parts[0](hertz[..., None])
    wave = published.decode(mel.transpose(1, 2), excitation.transpose(1, 2))
    assert float(wave.std()) > 1e-3
    check_wave(ours(mel)[..., 0], wave)


@proves("cosyvoice2-s3-v2", "weights", "outputs")
@pytest.mark.parametrize("chunk", [0, 25])
@torch.no_grad()
def test_flow(theirs, monkeypatch, chunk):
    """The same mel frames from the same noise, in the voice of a vector and a prompt; under the masks of chunks too."""
    torch.manual_seed(0)
    published = opened(their_flow(theirs))
    published.encoder.static_chunk_size, published.decoder.estimator.static_chunk_size = chunk, 2 * chunk
    ours = TokenToMel(FlowConfig(**FLOW)).eval()
    fill_flow(ours, published.state_dict(), "flow.pt")
    size = 60 if chunk else 20  # no more than one of our chunks where theirs has none
    tokens, speaker, prompt = torch.randint(50, (1, size)), torch.randn(1, 192), torch.randn(1, 10, 80)

    def noise(like):
        at = torch.arange(like.shape[2])[None, :, None]
        return normal(torch.full((1, 1, 1), 3), at, torch.arange(80)).transpose(1, 2)

    monkeypatch.setattr(torch, "randn_like", noise)
    counts = torch.tensor([size - 5]), torch.tensor([5])
    mel, _ = published.inference(
        tokens[:, 5:], counts[0], tokens[:, :5], counts[1], prompt, torch.tensor([10]), speaker, True
    )
    state = seeded(ours.told(ours.initial_state(1), speaker, prompt), torch.tensor([3]))
    y, state = ours.step(ours.embed(tokens), state)
    said = torch.cat([y[:, : int(state.emitted[0])], ours.flush(state)[0]], dim=1)[:, 10:]
    assert float(mel.std()) > 0.5
    torch.testing.assert_close(said, mel.transpose(1, 2), atol=2e-4, rtol=0)


@proves("cosyvoice2-s3-v2", "weights", "loads")
@torch.no_grad()
def test_a_published_file_loads(theirs, tmp_path, monkeypatch):
    """s3gen.safetensors with all its parts, of sizes smaller than the published ones."""
    from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2

    torch.manual_seed(0)
    tokenizer = opened(S3TokenizerV2("speech_tokenizer_v2_25hz", ModelConfig(80, 1500, 128, 2, 1)))
    flow = opened(their_flow(theirs, tokens=6561))
    parts = {"tokenizer": tokenizer, "flow": flow, "mel2wav": opened(their_hift(theirs, inputs=80))}
    tensors = {f"{part}.{name}": value.clone() for part, model in parts.items() for name, value in
               model.state_dict().items()}  # fmt: skip
    more = {"speaker_encoder.head.conv1.weight": torch.zeros(3), "tokenizer._mel_filters": torch.zeros(2)}
    save_file({**tensors, **more}, tmp_path / "s3gen.safetensors")
    small = {name: value for name, value in FLOW.items() if name != "tokens"}
    sizes = SemanticConfig(
        ears={"kind": "s3", "mels": 80, "width": 128, "layers": 1, "heads": 2, "hidden": 512}, flow=small,
        vocoder={"width": 16, "harmonics": 3, "pitch_width": 12}, voice=4,
    )  # fmt: skip
    monkeypatch.setattr("vivavoce.codecs.semantic_weights.SemanticConfig", lambda: sizes)
    codec = load_tokenizer(tmp_path)
    assert isinstance(codec, SemanticCodec) and not codec.training
    torch.testing.assert_close(codec.to_mel.embedding.weight, flow.input_embedding.weight)
    wave = speech_like(0.5, 24000)
    assert codec(wave).audio.shape == wave.shape
    (tmp_path / "cut").mkdir()
    save_file({name: value for name, value in tensors.items() if "flow.encoder_proj" not in name},
              tmp_path / "cut" / "s3gen.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"flow: 'encoder_proj\.weight' is missing"):
        load_tokenizer(tmp_path / "cut")


def test_published_sizes(theirs):
    with torch.device("meta"):
        flow = their_flow(theirs, 6561, 8, 2048, 6, 256, 8, 64, 4, 12)
        ours = TokenToMel(FlowConfig())
        vocoder = HiFT(HiFTConfig())
    assert size_of(ours) == size_of(flow) == 112_549_360
    hift = their_hift(theirs, 80, 512, 8, 512)
    gains = sum(value.numel() for name, value in hift.named_parameters() if name.endswith("original0"))
    assert size_of(vocoder) == size_of(hift) - gains == 20_806_557


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def test_mel_frames(theirs, monkeypatch):
    filters = ModuleType("librosa.filters")
    filters.mel = lambda sr, n_fft, n_mels, fmin, fmax: mel_filters(
        sr, n_fft, n_mels, fmin, fmax, scale="slaney", area=True
    )
    monkeypatch.setitem(sys.modules, "librosa", ModuleType("librosa"))
    monkeypatch.setitem(sys.modules, "librosa.filters", filters)
    wave = speech_like(0.5, 24000)[0]
    mel = theirs("utils.mel").mel_spectrogram(wave)
    torch.testing.assert_close(vocoder_mel(wave, 24000, 1920, 480), mel.transpose(1, 2), atol=1e-4, rtol=0)
