"""`vivavoce replay`: recorded conversations once more, through the same model or another, and what is different."""

import json
from pathlib import Path
from typing import Any

import typer

from vivavoce.cli.options import DEVICE, DTYPE, JSON


def register(app: typer.Typer) -> None:
    """Add the command `replay`."""

    @app.command("replay")
    def replay(
        log: Path = typer.Argument(..., metavar="LOG|FOLDER", help="A recording, or a folder of them."),
        model: str = typer.Option(None, "--model", help="Another model than the one that was recorded."),
        speed: str = typer.Option("max", "--speed", help="max; or a number: 1 is as fast as it was said."),
        out: Path = typer.Option(None, "--out", metavar="DIR", help="Where the new ones go; default: LOG/../replayed."),
        rows: int = typer.Option(0, "--rows", min=0, help="Rows in lockstep; 0: as recorded, for equal last bits."),
        same: bool = typer.Option(False, "--same", help="Exit code 1 where anything that is said differs."),
        device: str = DEVICE,
        dtype: str = DTYPE,
        as_json: bool = JSON,
    ) -> None:
        """Have a model hear what was heard in recordings of `talk --record`, and compare what it says."""
        from vivavoce.errors import RequestError
        from vivavoce.serving.recorded import find_recordings, read_recording
        from vivavoce.serving.replay import compare
        from vivavoce.serving.replay import replay as once_more

        pace = _pace(speed)
        recordings = [read_recording(found) for found in find_recordings(log)]
        folder = out or (log if log.is_dir() else log.parent) / "replayed"
        models: dict[str, Any] = {}
        told, equal = [], True
        for recording in recordings:
            name = model or recording.opened.get("model")
            if not name:
                raise RequestError(f"{recording.log}: it does not say which model was recorded: give --model")
            if name not in models:
                models[name] = _load(name, device, dtype)
            again = once_more(recording, models[name], folder, name, pace, rows)
            found = compare(recording, again)
            equal = equal and found.same
            if as_json:
                where = {"recording": str(recording.log), "replay": str(again.log), "model": name}
                told.append({**where, **found.to_json()})
            else:
                typer.echo("\n".join(_lines(recording, again, name, found)))
        if as_json:
            typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
        if same and not equal:
            raise typer.Exit(1)


def _pace(speed: str) -> float | None:
    import math

    from vivavoce.errors import RequestError

    try:
        pace = None if speed == "max" else float(speed)
    except ValueError:
        pace = 0.0
    if pace is not None and not 0 < pace < math.inf:
        raise RequestError(f"--speed {speed}: 'max', or a number above 0, is expected")
    return pace


def _load(name: str, device: str, dtype: str | None) -> Any:
    import vivavoce
    from vivavoce.cli.options import placed, use_few_threads

    loaded = vivavoce.load(name, **placed(device, dtype))
    use_few_threads(loaded)
    return loaded


def _lines(recording: Any, again: Any, name: str, found: Any) -> list[str]:
    """What people read."""
    opened, size = recording.opened, recording.frame_size
    ended = "broke off" if recording.closed is None else recording.closed["reason"]
    lines = [
        f"recording  {recording.log}: {opened.get('model')}, seed {opened['seed']}, {recording.frames} frames, "
        f"{recording.frames * recording.frame_seconds:.1f} s, {ended}",
        f"replay     {again.log}: {name}",
        f"words      {found.words[0] or '-'}",
        f"           {'the same' if found.same_words else found.words[1] or '-'}",
    ]
    gaps = [" ".join(f"{gap:.2f}" for gap in each) or "-" for each in found.gaps]
    lines += [f"turn gaps  {gaps[0]} s", f"           {'the same' if gaps[0] == gaps[1] else gaps[1] + ' s'}"]
    if found.samples is None:
        lines.append("sound      not compared: the sample rates differ")
    elif found.first is None:
        lines.append(f"sound      the same, {found.samples} samples")
    else:
        lines.append(
            f"sound      differs from sample {found.first} on (frame {found.frame}, "
            f"{found.first / recording.sample_rate:.2f} s): {found.differing} of {found.samples} samples, by "
            f"{found.largest:.2g} at most"
        )
    if found.samples is not None and abs(found.lengths[0] - found.lengths[1]) > (0 if recording.closed else size):
        lines.append(f"length     {found.lengths[0]} samples were said, then {found.lengths[1]}")
    return lines
