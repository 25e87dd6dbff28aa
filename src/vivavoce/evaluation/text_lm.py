"""How likely a text language model finds a text: a causal model by path or hub id, in transformers' format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vivavoce.errors import CheckpointError, RequestError, need

# what a directory of transformers is made of, pickles left out
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


class TextLM:
    """A causal language model with its tokenizer (extra `hub`).

    name: a directory or hub id `owner/name[@revision]`. Weights are read from safetensors, into float32. Raises
    `RequestError` where there is nothing of that name, `CheckpointError` for what is no causal language model.
    """

    def __init__(self, name: str | Path, device: str = "cpu", revision: str | None = None):
        from vivavoce.hub import local_place

        transformers = need("transformers", "hub", f"the text language model '{name}'")
        directory = local_place(name, "text language model", FILES, revision)
        self.name, self.device = str(name), device
        known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(directory), **known)
            model, about = transformers.AutoModelForCausalLM.from_pretrained(
                str(directory), use_safetensors=True, dtype=torch.float32, output_loading_info=True, **known
            )
        except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
            why = str(error).strip().split("\n")[0]
            raise CheckpointError(f"'{name}' is no language model that transformers can load: {why}") from error
        if missing := sorted(about["missing_keys"]):
            raise CheckpointError(f"'{name}': weights are missing, '{missing[0]}' is one of {len(missing)}")
        self._model: Any = model.to(device).eval()
        self._most = getattr(model.config, "max_position_embeddings", None)

    def nats(self, texts: Sequence[str], ends: bool = False) -> list[tuple[float, int]]:
        """Of each text the negative log-probability of its tokens and how many they are; (0, 0) for none.

        Without `ends` the text is tokenized as its tokenizer does it, and the first token is not scored (with a begin
        token, as Llama's, that is all of the text; GPT-2 has none). With `ends` an end token stands before the text
        (the begin token where there is one) and another behind it, and every token is scored but the one before:
        fairseq's way. A text scores the same among others as alone.
        """
        rows = [self._ids(text, ends) for text in texts]
        longest = max(map(len, rows), default=0)
        if self._most is not None and longest > self._most:
            raise RequestError(f"'{self.name}' reads {self._most} tokens, a text has {longest}: score shorter ones")
        if longest < 2:
            return [(0.0, 0) for _ in rows]
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, found in enumerate(rows):
            ids[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
            mask[row, : len(found)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
            costs = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        sums = (costs.double() * mask[:, 1:]).sum(1).tolist()
        return [(total, max(len(row) - 1, 0)) for total, row in zip(sums, rows, strict=True)]

    def _ids(self, text: str, ends: bool) -> list[int]:
        if not ends:
            return list(self._tokenizer(text)["input_ids"])
        end, begin = self._tokenizer.eos_token_id, self._tokenizer.bos_token_id
        if end is None:
            raise CheckpointError(f"'{self.name}': its tokenizer has no end token, which is to be scored")
        inner = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return [end if begin is None else begin, *inner, end] if inner else []
