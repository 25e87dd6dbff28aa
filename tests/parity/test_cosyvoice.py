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
from vivavoce.codecs.cosyvoice_files import s3_weights
from vivavoce.codecs.semantic import SemanticCodec, SemanticConfig
from vivavoce.codecs.semantic_weights import fill_s3
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


SETTINGS = """
__set_seed1: !apply:random.seed [1986]
sample_rate: 24000
spk_embed_dim: 192
token_frame_rate: 25
token_mel_ratio: 2
llm: !new:cosyvoice.llm.llm.Qwen2LM
    speech_token_size: 6561
flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithXvec
    spk_embed_dim: !ref <spk_embed_dim>
    vocab_size: 6561
    input_frame_rate: !ref <token_frame_rate>
    pre_lookahead_len: 3
    encoder: !new:cosyvoice.transformer.upsample_encoder.UpsampleConformerEncoder
        output_size: 512
        attention_heads: 2
        linear_units: 24
        num_blocks: 1
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        cfm_params: !new:omegaconf.DictConfig
            content: {sigma_min: 1e-06, inference_cfg_rate: 0.7}
        estimator: !new:cosyvoice.flow.decoder.CausalConditionalDecoder
            channels: [16]
            attention_head_dim: 4
            n_blocks: 2
            num_mid_blocks: 2
            num_heads: 2
            static_chunk_size: !ref <token_frame_rate> * <token_mel_ratio>
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: 80
    base_channels: 16
    nb_harmonics: 3
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 5, 3]
    upsample_kernel_sizes: [16, 11, 7]
    istft_params: {n_fft: 16, hop_len: 4}
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        cond_channels: 12
allowed_special: 'all'
data_pipeline: [!ref <allowed_special>, !name:cosyvoice.dataset.processor.batch ]
"""


def as_onnx(state, path, version):
    """A tokenizer's weights under the names of the published files: nodes have paths, some initializers numbers; norms
    are whole in the second version and in pieces in the first."""
    onnx = peer("onnx")
    nodes, tensors = [], []

    def add(operator, name, *weights, out=None):
        for key, value in weights:
            tensors.append(onnx.numpy_helper.from_array(value.contiguous().numpy(), key))
        inputs = [f"{name}_in", *(key for key, _ in weights)]
        nodes.append(onnx.helper.make_node(operator, inputs, [out or f"{name}_out"], name=name))

    numbers = iter(range(3000, 4000))
    for number, first in ((1, 2216), (2, 2218)):
        names = (f"encoders.conv{number}.weight", f"encoders.conv{number}.bias")
        names = names if version == 1 else (f"onnx::Conv_{first}", f"onnx::Conv_{first + 1}")
        tensor = [state[f"encoder.conv{number}.{kind}"] for kind in ("weight", "bias")]
        add("Conv", f"/conv{number}/Conv", *zip(names, tensor))
    if version == 1:
        add("Add", "/Add", ("encoders.positional_embedding", state["encoder.positional_embedding"]))
    for key, value in state.items():
        stem, _, kind = key.removeprefix("encoder.").rpartition(".")
        if not stem.startswith("blocks."):
            continue
        at = "/" + stem.replace(".mlp.", ".mlp.mlp.").replace(".", "/").replace("blocks/", "blocks.")
        at = at.replace("mlp/mlp/", "mlp/mlp.")
        if stem.endswith("_ln"):
            if version == 2 and kind == "weight":
                bias = state[key.replace("weight", "bias")]
                add("LayerNormalization", f"{at}/LayerNormalization", (key, value), (f"{stem}.bias", bias))
            elif version == 1:
                operator, last = ("Mul", "Mul") if kind == "weight" else ("Add", "Add_1")
                add(operator, f"{at}/{last}", (key, value))
        elif "fsmn" in stem:
            add("Conv", f"{at}/Conv", (f"onnx::Conv_{next(numbers)}", value))
        elif kind == "weight":
            add("MatMul", f"{at}/MatMul", (f"onnx::MatMul_{next(numbers)}", value.t()))
        else:
            add("Add", f"{at}/Add", (key, value))
    book = "quantizer._codebook"
    if version == 1:
        entries = state[f"{book}.embed"].t()
        add("Pow", "/quantizer/rq/model/layers.0/_codebook/Pow_1", (f"onnx::Pow_{next(numbers)}", entries))
    else:
        down = state[f"{book}.project_down.weight"].t()
        add("MatMul", "/quantizer/project_in/MatMul", ("onnx::MatMul_2536", down), out="/quantizer/project_in/Add_in")
        add("Add", "/quantizer/project_in/Add", ("quantizer.project_in.bias", state[f"{book}.project_down.bias"]))
    graph = onnx.helper.make_graph(nodes, "tokenizer", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), path)


def s3_of(version):
    from s3tokenizer.model import ModelConfig as First
    from s3tokenizer.model import S3Tokenizer
    from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2

    sizes = (80, 1500, 128, 2, 1)
    return opened(S3Tokenizer("speech_tokenizer_v1", First(*sizes)) if version == 1 else
                  S3TokenizerV2("speech_tokenizer_v2_25hz", ModelConfig(*sizes)))  # fmt: skip


@pytest.mark.parametrize("version", [
    pytest.param(1, marks=proves("cosyvoice-s3-v1", "weights")),
    pytest.param(2, marks=proves("cosyvoice2-s3-v2", "weights", "loads")),
])  # fmt: skip
def test_the_tokenizer_s_onnx_file(version, tmp_path):
    """The tensors that the package s3tokenizer reads out of it, which are those of the model."""
    torch.manual_seed(0)
    tokenizer, path = s3_of(version), tmp_path / f"speech_tokenizer_v{version}.onnx"
    computed = ("_mel_filters", "window", "freqs_cis")
    state = {name: value for name, value in tokenizer.state_dict().items() if not name.endswith(computed)}
    as_onnx(state, path, version)
    found = s3_weights(path)
    from s3tokenizer.utils import onnx2torch

    package = onnx2torch(str(path))
    assert found.keys() == package.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value) and torch.equal(package[name], value), name
    content = path.read_bytes()
    for broken, said in ((content[: len(content) // 2], "damaged"), (b"", "empty"), (b"\x0a\x03abc", "0 graphs")):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=said):
            s3_weights(path)


@proves("cosyvoice2-s3-v2", "weights", "loads")
@torch.no_grad()
def test_cosyvoice_s_own_directory_loads(theirs, tmp_path):
    """All sizes by its settings and tensors; codes and sound are those of the same weights in the other form."""
    torch.manual_seed(0)
    tokenizer, flow, hift = s3_of(2), opened(their_flow(theirs, tokens=6561)), opened(their_hift(theirs, inputs=80))
    as_onnx(tokenizer.state_dict(), tmp_path / "speech_tokenizer_v2.onnx", 2)
    torch.save(flow.state_dict(), tmp_path / "flow.pt")
    torch.save({f"generator.{name}": value for name, value in hift.state_dict().items()}, tmp_path / "hift.pt")
    for name in ("llm.pt", "campplus.onnx"):
        (tmp_path / name).write_bytes(b"not read")
    (tmp_path / "cosyvoice2.yaml").write_text(SETTINGS)
    codec = load_tokenizer(tmp_path, allow_pickle=True)
    assert isinstance(codec, SemanticCodec) and not codec.training
    other = SemanticCodec(codec.config).eval()
    fill_flow(other.to_mel, flow.state_dict(), "flow")
    fill_hift(other.vocoder, hift.state_dict(), "hift")
    fill_s3(other, {name: value for name, value in tokenizer.state_dict().items() if "freqs_cis" not in name}, "s3")
    for part in ("encoder", "decoder"):
        one, two = (getattr(each, part).state_dict() for each in (codec, other))
        assert all(torch.equal(one[name], two[name]) for name in two)
    down = codec.quantizer.state_dict()["input_projection.weight"]
    assert torch.equal(down, tokenizer.state_dict()["quantizer._codebook.project_down.weight"])
    assert (codec.to_mel.config.guidance, codec.to_mel.config.chunk, codec.vocoder.config.harmonics) == (0.7, 25, 3)
    wave = speech_like(0.3, 24000)
    codes = codec.encode(wave)
    assert codes.shape == (1, 1, 8) and codec.decode(codes, speaker=torch.randn(1, 192)).shape == (1, 1, 8 * 960)

    with pytest.raises(CheckpointError, match="is a pickle"):
        load_tokenizer(tmp_path)
    (tmp_path / "cosyvoice2.yaml").write_text(SETTINGS.replace("num_mid_blocks: 2", "num_mid: 2"))
    with pytest.raises(CheckpointError, match=r"cosyvoice2\.yaml: 'num_mid_blocks' is missing"):
        load_tokenizer(tmp_path, allow_pickle=True)
    (tmp_path / "cosyvoice2.yaml").write_text(SETTINGS.replace("num_mid_blocks: 2", "num_mid_blocks: 3"))
    with pytest.raises(CheckpointError, match=r"flow\.pt: 'decoder\.estimator\.mid_blocks\.2"):
        load_tokenizer(tmp_path, allow_pickle=True)
    (tmp_path / "speech_tokenizer_v2.onnx").rename(tmp_path / "speech_tokenizer_v1.onnx")
    with pytest.raises(CheckpointError, match="first version"):
        load_tokenizer(tmp_path, allow_pickle=True)


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
