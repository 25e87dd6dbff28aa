"""Put what `make demo` prints, and one of its pictures, into the README: run it whenever `mini` has changed.

    .venv/bin/python docs/show_demo.py
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT / "examples" / "recordings" / "three-four-george-joined.wav"
BLOCK = re.compile(r"(<!-- what the demo printed -->\n)```text\n.*?```\n", re.DOTALL)


def main() -> None:
    """Run the demo, draw one conversation, rewrite the README's block."""
    import torch

    import vivavoce
    from vivavoce.evaluation.conversation import converse
    from vivavoce.evaluation.conversation_page import draw

    shown = subprocess.run([sys.executable, "examples/demo.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    torch.set_num_threads(1)
    talk = converse(vivavoce.load("mini"), vivavoce.read(RECORDING), name=RECORDING.stem)
    (ROOT / "docs" / "pictures" / "demo.png").write_bytes(draw(talk))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert BLOCK.search(text), "README.md has no block '<!-- what the demo printed -->'"
    printed = f"```text\n{shown.stdout.strip()}\n```\n"
    readme.write_text(BLOCK.sub(lambda match: match[1] + printed, text), encoding="utf-8")


if __name__ == "__main__":
    main()
