"""Let the embedded model answer the shipped recordings: wav files, a page to look at and listen to, and figures.

python examples/demo.py [--model mini] [--out out/demo]
"""

import argparse
import json
import time
from pathlib import Path

import torch

import vivavoce
from vivavoce.evaluation.conversation import converse
from vivavoce.evaluation.conversation_page import conversation_page, latency_text

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Load, converse, write, tell."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="mini", help="mini, a model or run directory, or a hub id")
    options.add_argument("--out", type=Path, default=Path("out/demo"), help="where the answers go")
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)  # frames are small: a second thread costs more than it brings
    start = time.perf_counter()
    model = vivavoce.load(chosen.model)
    print(f"{chosen.model}: loaded in {time.perf_counter() - start:.1f} s\n")
    print(f"{'recording':<32}{'it heard':<24}{'it said':<28}{'first audio':>11}  {'real-time factor'}")

    conversations = []
    for row in json.loads((HERE / "recordings.json").read_text()):
        name = Path(row["file"]).stem
        talk = converse(model, vivavoce.read(HERE / row["file"]), name=name)
        vivavoce.write(chosen.out / f"{name}-answer.wav", vivavoce.Audio(talk.said, talk.sample_rate))
        heard, said = talk.transcript("user") or "-", talk.transcript("model") or "-"
        print(
            f"{name:<32}{heard[:22]:<24}{said[:26]:<28}{latency_text(talk):>11}  {talk.real_time_factor:.2f}",
            flush=True,
        )
        conversations.append(talk)

    page = chosen.out / "index.html"
    notes = [
        "Recordings of people, none of them in the training data; names that end in 'joined' are sums joined from two "
        "recordings of single digits. Sources and licences: examples/LICENSES.md.",
    ]
    page.write_text(conversation_page(conversations, f"{chosen.model} answers", notes), encoding="utf-8")
    print(f"\nanswers: {chosen.out}/*.wav\npage:    {page}")


if __name__ == "__main__":
    main()
