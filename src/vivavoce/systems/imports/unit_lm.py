"""Unit language models in transformers' directories (Qwen2, Llama, OPT, …), read and written: TWIST's and Slam's form.

Their one vocabulary holds special ids, and behind them the units: id `offset + u` is unit u. Which, the directory says:
slamkit's `tokeniser_config.json` (num_units, pad_token_id, bos_eos_token_id; the units behind both), or `offset` of
`config.json`, as TWIST's has it, or else the ids of `config.json` that are special. slamkit's own class
(`speech_language_model`) wraps such a model under `lm.`.

References: slamkit (slp-rl), model/unit_lm.py, tokeniser/unit_tokeniser.py; textlesslib, examples/twist/speech_lm.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.errors import CheckpointError, RecipeError, RequestError, need
from vivavoce.lm.configurations import config_of
from vivavoce.lm.families import FAMILIES
from vivavoce.lm.grid import GridLM
from vivavoce.lm.heads import LinearHead
from vivavoce.lm.pretrained import build, save_text_lm, shape_of, text_lm_of
from vivavoce.lm.text_lm import TextLM
from vivavoce.nn.weights import written_whole
from vivavoce.pretrained import CONFIG, read_json, read_weights
from vivavoce.schema.reading import resolve
from vivavoce.systems.imports.pairs import laid_out
from vivavoce.systems.token_lm import TokenLM
from vivavoce.systems.token_streams import token_streams
from vivavoce.systems.token_system import TokenSystem
from vivavoce.systems.unit_lm import CONTINUE, UnitLM

SLAMKIT, IDS = "speech_language_model", "tokeniser_config.json"
TEXT = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "spiece.model")
RATE = 25.0  # of TWIST's and Slam's units, where no units are named
MOST = 65536  # a vocabulary without a word about its units that is larger is one of text


@dataclass(frozen=True)
class UnitIds:
    """Where the units stand: ids offset … offset + units - 1; those that begin and end an utterance, if there are."""

    units: int
    offset: int
    begin: int | None = None
    end: int | None = None
    dedup: bool = True

    def spare(self, vocabulary: int) -> list[int]:
        """All other ids, in their order."""
        taken = {*range(self.offset, self.offset + self.units), self.end}
        return [n for n in range(vocabulary) if n not in taken]

    def order(self, vocabulary: int) -> list[int]:
        """Our ids by theirs: the units, the end, what is spare."""
        ends = [] if self.end is None else [self.end]
        return [*range(self.offset, self.offset + self.units), *ends, *self.spare(vocabulary)]


def is_unit_lm(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a directory holds a model of the families that unit language models are of."""
    return config.get("model_type") in (SLAMKIT, *FAMILIES)


def read_ids(folder: Path, config: Mapping[str, Any]) -> UnitIds:
    """Where the units stand in the vocabulary of a directory; `CheckpointError` where it is not to be told."""
    vocabulary, where = config.get("vocab_size"), str(folder / CONFIG)
    if not isinstance(vocabulary, int) or vocabulary < 1:
        raise CheckpointError(f"{where}: vocab_size = {vocabulary!r}: a number of ids is expected")
    if (folder / IDS).is_file():
        said, where = read_json(folder / IDS), str(folder / IDS)
        numbers = {"num_units": 500, "pad_token_id": 0, "bos_eos_token_id": 1}
        found = {name: said.get(name, value) for name, value in numbers.items()}
        if not all(isinstance(value, int) and value >= 0 for value in found.values()):
            raise CheckpointError(f"{where}: num_units, pad_token_id, bos_eos_token_id are numbers, not {found}")
        begin = found["bos_eos_token_id"]
        offset = max(begin, found["pad_token_id"]) + 1
        ids = UnitIds(found["num_units"], offset, begin, begin, bool(said.get("dedup", True)))
    else:
        special = {name: config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
        if isinstance(config.get("offset"), int):
            offset = int(config["offset"])
            units = config.get("num_units", vocabulary - offset)
            end = special["eos"] if isinstance(special["eos"], int) and special["eos"] < offset else None
            ids = UnitIds(units, offset, None, end)  # their own generation begins with the first unit
        else:
            if any((folder / name).is_file() for name in TEXT) or vocabulary > MOST:
                raise CheckpointError(
                    f"{folder} is a language model of text, {vocabulary} ids: as a unit language model's beginning it "
                    "stands in a recipe (stages.NAME.backbone.from); if its ids are units, say which: "
                    f'{IDS} with {{"num_units": 500, "pad_token_id": 0, "bos_eos_token_id": 1}}'
                )
            known = {n for n in special.values() if isinstance(n, int) and 0 <= n < vocabulary}
            first = 0
            while first in known:
                first += 1
            units = min([n for n in known if n >= first], default=vocabulary) - first
            begin, end = (special[n] if special[n] in known else None for n in ("bos", "eos"))
            ids = UnitIds(units, first, begin, end)
    if ids.units < 1 or ids.offset + ids.units > vocabulary or (ids.end or 0) >= vocabulary:
        place = f"{ids.units} units from id {ids.offset}"
        raise CheckpointError(f"{where}: {place} do not fit a vocabulary of {vocabulary}")
    return ids


def read_unit_lm(folder: Path, allow_pickle: bool = False) -> tuple[TextLM, dict[str, Any]]:
    """The network of a directory as a text LM, and its configuration without slamkit's wrapping."""
    config, tensors = read_json(folder / CONFIG), read_weights(folder, allow_pickle)
    if config.get("model_type") == SLAMKIT:
        base = config.get("base_config")
        if not isinstance(base, dict):
            raise CheckpointError(f"{folder / CONFIG}: base_config is missing: the configuration of the wrapped model")
        transformers = need("transformers", "hub", f"{folder / CONFIG} leaves out what transformers' classes have")
        kind = base.get("model_type")
        try:
            plain = transformers.AutoConfig.for_model(**{"model_type": kind, **base}).to_dict()
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{folder / CONFIG}: base_config: {str(error).splitlines()[0]}") from error
        config = {**plain, "vocab_size": config.get("vocab_size", plain.get("vocab_size"))}
        tensors = {name.removeprefix("lm."): tensor for name, tensor in tensors.items()}
    return text_lm_of(config, tensors, folder), config


def load_unit_lm(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
    units: str | None = None,
) -> TokenLM:
    """The directory as a unit language model: `loglik` and `fill` on units.

    units: a directory of units (as `UnitCodec.save` writes it): then it hears audio, and speaks where these have a
    vocoder. Raises `CheckpointError` for what is missing or not supported.
    """
    lm, config = read_unit_lm(folder, allow_pickle)
    ids, where = read_ids(folder, config), str(folder)
    order = ids.order(lm.vocabulary)
    spare = len(order) - ids.units - (ids.end is not None)
    data = _recipe(lm, ids, spare, units)
    try:
        recipe = resolve(data, where)
        from vivavoce.systems.assembly import build_tokenizer

        tokenizer = build_tokenizer(recipe.tokenizers["units"])
        if tokenizer.codebook_size != ids.units:
            raise CheckpointError(f"{units} holds {tokenizer.codebook_size} units, {where} is a model of {ids.units}")
        streams = token_streams(recipe, {"units": tokenizer})
        parts: dict[str, nn.Module] = {"tokenizers": nn.ModuleDict(), "encoders": nn.ModuleDict()}
        if isinstance(tokenizer, nn.Module):
            parts["codec"] = tokenizer
        with torch.device("meta"):
            system = TokenSystem(recipe.stages[0], streams, parts, where)
    except RecipeError as error:
        raise CheckpointError(f"{where}: no model can be made of it: {error}") from error
    own = system.stage.state_dict()
    found = {name: laid_out(tensor, own[name], "cpu", tensor.dtype) for name, tensor in _ours(lm, ids, order).items()}
    system.stage.load_state_dict(found, strict=True, assign=True)
    system.stage.to(dtype=dtype or torch.float32)
    model = (UnitLM if "codec" in parts else TokenLM)(recipe, system)
    return model.to(device)  # type: ignore[return-value]


def _recipe(lm: TextLM, ids: UnitIds, spare: int, units: str | None) -> dict[str, Any]:
    from vivavoce.systems.checkpoint import sizes_of

    tokenizer: dict[str, Any] = {"kind": "integers", "size": ids.units, "rate": RATE}
    if units is not None:
        tokenizer = {"kind": "units", "source": str(units)}
    first = ids.units + (ids.end is not None)
    never = {first + n: -1e9 for n in range(spare)}  # ids that stand for no sound
    sampling = {"temperature": 0.8, "top_k": 25, **({"logit_bias": never} if never else {})}
    backbone = {"kind": "decoder", **sizes_of(lm.decoder)}
    stage = {
        "name": "lm",
        "tasks": {CONTINUE: {"given": ["units[:prompt]"], "fills": ["units"]}},
        "layout": {"kind": "dedup" if ids.dedup else "flat"},
        "backbone": backbone if ids.begin is not None else {**backbone, "begin": False},
        "heads": {"units": {"kind": "linear", "bias": False, "spare": spare}},
        "decode": {"order": "ar", "sampling": sampling, "length": "end" if ids.end is not None else "requested"},
    }
    return {
        "system": "unit-lm",
        "sample_rate": 16000,
        "tokenizers": {"units": {**tokenizer, "end": ids.end is not None}},
        "streams": {"units": {"tokenizer": "units"}},
        "stages": [stage],
        "interaction": {"kind": "offline", "hears": "units", "speaks": "units"},
    }


@torch.no_grad()
def _ours(lm: TextLM, ids: UnitIds, order: list[int]) -> dict[str, Tensor]:
    """The network of a text LM as tensors of a `GridLM`; narrow tables (OPT-350m) become as wide as the layers."""
    table = lm.embed(torch.arange(lm.vocabulary)[None])[0].float()
    head = (lm.table.weight if lm.head is None else lm.head.weight).float()
    if lm.leave is not None:
        head = head @ lm.leave.weight.float()
    found = {f"backbone.{name}": tensor for name, tensor in lm.decoder.state_dict().items()}
    found |= {"tables.units.0.weight": table[order].clone(), "linear.units.0.weight": head[order].clone()}
    return found if ids.begin is None else {**found, "begin": table[ids.begin].clone()}


# -- writing --


def save_unit_lm(model: Any, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model of one stream of units as a directory that `transformers.AutoModelForCausalLM` loads: logits of id
    `offset + u` are those of unit u. The spare ids come first, then the one that begins and ends, then the units.

    Weights are stored in `dtype`. Raises `RequestError` for what that format cannot say.
    """
    name, ids, stage = _one_stream(model)
    table, head = stage.tables[name][0].weight, stage.linear[name][0].weight  # type: ignore[index]
    table, head = table.detach().float().cpu(), head.detach().float().cpu()
    units, ends, vocabulary = ids.units, ids.end is not None, len(head)
    mine = [*range(units + ends, vocabulary), *([units] if ends else []), *range(units)]  # theirs by ours
    embedded = table[mine].clone()
    if ids.begin is not None:
        assert stage.begin is not None
        embedded[ids.begin] = stage.begin.detach().float().cpu()
    tied = torch.equal(embedded, head[mine])
    config = config_of(stage.backbone, vocabulary, tied)
    config |= {"offset": ids.offset, "num_units": units, "pad_token_id": 0 if ids.offset else None}
    config |= {"bos_token_id": ids.begin, "eos_token_id": ids.end}
    folder = Path(directory)
    lm = build(shape_of(folder, config), config)
    tensors = {f"decoder.{key}": value.float() for key, value in stage.backbone.state_dict().items()}
    tensors["table.weight"] = embedded
    if not tied:
        tensors["head.weight"] = head[mine].clone()
    lm.load_state_dict(tensors)
    save_text_lm(lm.to(dtype), folder)
    said = {"dedup": ids.dedup, "bos_eos_token_id": ids.begin, "pad_token_id": 0, "num_units": units, "load_fe": False}
    (folder / IDS).unlink(missing_ok=True)
    if ids.begin is not None:
        with written_whole(folder / IDS) as part:
            part.write_text(json.dumps(said, indent=1), encoding="utf-8")


def _one_stream(model: Any) -> tuple[str, UnitIds, GridLM]:
    """The stream of a model that is one of units alone, and where these will stand; else a `RequestError` why not."""
    why = f"{model.name}: transformers' format holds one stream of one vocabulary"
    stage = getattr(model.system, "stage", None)
    if not isinstance(stage, GridLM) or not isinstance(model.system, TokenSystem):
        raise RequestError(f"{why}; this is no single language model over tokens")
    names = list(model.system.streams)
    if len(names) != 1:
        raise RequestError(f"{why}; this has {', '.join(names)}")
    (name,) = names
    stream, layout = model.system.streams[name], model.system.layout
    kinds = {part.layout.kind for part in model.recipe.stages if part.layout is not None}
    if len(model.system.layouts) != 1 or kinds - {"flat", "dedup"} or stage.literals is not None:
        raise RequestError(f"{why}, one id a column; this has layouts beside flat and dedup, or literals")
    if layout.program.positions != "column" or len(stage.slots[name]) != 1 or stage.begins == "blanks":
        raise RequestError(f"{why}, one id a column in their order; '{name}' stands otherwise in this one")
    head = stage.head(name)
    if not isinstance(head, LinearHead):
        raise RequestError(f"{why}, predicted by one matrix; heads.{name} is another")
    bias = head[0].bias
    if bias is not None and bool(bias.detach().any()):  # type: ignore[operator]
        raise RequestError(f"{why}, whose head has no bias: train it with heads.{name}: {{kind: linear, bias: false}}")
    begins, ends = stage.begin is not None, stream.spec.end is not None
    if begins and not ends:
        raise RequestError(f"{why}, where an id begins an utterance: units need an end token (tokenizers: end: true)")
    if stage.tables[name][0].weight.shape != head[0].weight.shape:  # type: ignore[index]
        raise RequestError(f"{why}; this has ids that are read and never predicted")
    mark = stream.spare if ends else None
    ids = UnitIds(stream.size, stream.spare + ends, mark if begins else None, mark, kinds == {"dedup"})
    return name, ids, stage
