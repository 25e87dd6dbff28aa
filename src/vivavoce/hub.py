"""Models of other people by name: a place on this disk, or an id of the hub. The one door to huggingface.co."""

import os
from collections.abc import Sequence
from pathlib import Path

from vivavoce.errors import RequestError, need


def local_place(name: str | Path, kind: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Where `name` is on this disk: a file or a directory, or the directory that a hub id has been fetched to.

    A hub id is `owner/name[@revision]`, its revision a branch, tag or commit, which `revision` can say instead. kind:
    what is looked for, as errors call it ("tokenizer"). files: patterns of what is fetched. With VIVAVOCE_OFFLINE=1 or
    HF_HUB_OFFLINE=1 only what was fetched earlier is taken. Raises `RequestError` where there is nothing of that name.
    """
    name = str(name)
    path = Path(name).expanduser()
    if path.exists():
        return path
    owner, _, rest = name.partition("/")
    if not owner or not rest or "/" in rest or name.startswith((".", "~")):
        raise RequestError(f"no {kind} '{name}': neither a file, a directory, nor a hub id owner/name[@revision]")
    repository, _, asked = name.partition("@")
    if asked and revision and asked != revision:
        raise RequestError(f"{kind} '{name}' with revision '{revision}': give one revision")
    hub = need("huggingface_hub", "hub", f"{kind} '{name}' is nothing on this disk; fetching it from the hub")
    offline = any(os.environ.get(flag) == "1" for flag in ("VIVAVOCE_OFFLINE", "HF_HUB_OFFLINE"))
    try:
        return Path(
            hub.snapshot_download(
                repository, revision=asked or revision, allow_patterns=list(files), local_files_only=offline
            )
        )
    except Exception as error:
        how = "it is not in the cache, and the environment says offline" if offline else str(error).split("\n")[0]
        raise RequestError(f"no {kind} '{name}': no such directory, and from the hub: {how}") from error
