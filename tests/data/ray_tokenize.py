"""Tokenizing on two workers of a Ray cluster of this machine, one of which is killed in the middle; for a test, in a
process of its own, since Ray connects to this machine's own address.

Usage: python ray_tokenize.py CODEC CORPUS STORE; prints a JSON object: rows, skipped, workers lost.
"""

import json
import os
import sys

from vivavoce.data.corpora import open_corpus
from vivavoce.data.store import TokenWriter
from vivavoce.data.tokenize import spec_of, tokenize
from vivavoce.data.workers import Crew, Spread, cluster
from vivavoce.systems.tokenizers import load_tokenizer

model, corpus, store = sys.argv[1:]
clips = open_corpus(corpus, license="CC0-1.0", source="noise").clips
codec = load_tokenizer(model)
added, add = 0, TokenWriter.add


def interrupted(self, rows):
    """The third batch is there: one of the two workers dies, as by a fault."""
    global added
    add(self, rows)
    added += 1
    if added == 3:
        ray.kill(spread.actors[0], no_restart=True)


TokenWriter.add = interrupted
os.environ["CUDA_VISIBLE_DEVICES"] = ""
with cluster() as ray:
    crew = Crew({"voice": model}, {"device": "cpu"}, workers=2, cpus=0.5)
    spread = Spread(ray, crew, {"voice": spec_of(codec, "voice")})
    result = tokenize(clips, {"voice": codec}, store, {"voice": model}, 1.0, 7, quiet=True, work=spread)
said = {"rows": result.rows, "skipped": list(result.skipped), "lost": spread.lost, "batches": added}
print(json.dumps(said), flush=True)
