"""`vivavoce ask`: one spoken turn, a question in a file and the answer in another."""

import json
from pathlib import Path

import typer

from vivavoce.cli.options import DEVICE, DTYPE, JSON


def register(app: typer.Typer) -> None:
    """Add the command `ask`."""

    @app.command("ask")
    def ask(
        words: list[str] = typer.Argument(
            ..., metavar="[MODEL] QUESTION.wav", help="The model (mini) and the recording."
        ),
        output: Path = typer.Option(None, "-o", "--output", metavar="ANSWER.wav", help="Where the spoken answer goes."),
        page: Path = typer.Option(None, "--page", metavar="PAGE.html", help="Also draw the conversation as a page."),
        task: str = typer.Option("answer", "--task", help="answer; or what else the model can do, as transcribe."),
        seed: int = typer.Option(0, "--seed", help="The same seed gives the same answer."),
        device: str = DEVICE,
        dtype: str = DTYPE,
        as_json: bool = JSON,
    ) -> None:
        """Ask a spoken question and get a spoken answer; prints both transcripts and the latency."""
        from vivavoce.errors import RequestError

        if len(words) > 2:
            raise RequestError(f"ask takes a model and one recording, not {len(words)} names: {' '.join(words)}")
        model_name, question = words if len(words) == 2 else ("mini", words[0])
        answered = _answer(model_name, question, task, seed, device, dtype, page)
        if output is not None:
            import vivavoce

            vivavoce.write(output, answered.pop("audio"))
            answered["answer"] = str(output)
        answered.pop("audio", None)
        if as_json:
            typer.echo(json.dumps(answered, ensure_ascii=False, indent=1))
            return
        latency = answered["first_audio_ms"]
        typer.echo(f"it heard     {answered['heard'] or '-'}")
        typer.echo(f"it said      {answered['text'] or '-'}")
        typer.echo(f"first audio  {'-' if latency is None else f'{latency} ms after the recording ended'}")
        typer.echo(f"computing    {answered['real_time_factor']} x real time")
        for label, file in (("answer", output), ("page", page)):
            if file is not None:
                typer.echo(f"{label:<12} {file}")


def _answer(name: str, question: str, task: str, seed: int, device: str, dtype: str | None, page: Path | None) -> dict:
    """The reply as plain data, its `audio` beside it. The question is read before the model is loaded."""
    import time

    import vivavoce
    from vivavoce.cli.options import placed, use_few_threads
    from vivavoce.evaluation.conversation import converse, first_sound

    audio = vivavoce.read(question)
    model = vivavoce.load(name, **placed(device, dtype))
    use_few_threads(model)
    start = time.perf_counter()
    reply = model.reply([("user", audio)], task=task, seed=seed)
    took = time.perf_counter() - start
    lasts = audio.duration + reply.audio.duration
    onset = first_sound(reply.audio.samples.mean(axis=0), reply.audio.sample_rate) if len(reply.audio) else None
    # What one frame's computing adds to the onset in a live conversation is its share of the whole.
    size = getattr(getattr(model, "system", None), "frame_size", None)
    frame = size / model.sample_rate if size else 0.0
    if page is not None:
        from vivavoce.data.files import atomic
        from vivavoce.evaluation.conversation_page import conversation_page

        talk = converse(model, audio, name=Path(question).stem, seed=seed)
        with atomic(page) as file:
            file.write(conversation_page([talk], f"{name} answers"))
    return {
        "model": name,
        "question": question,
        "heard": getattr(reply, "user_text", ""),
        "text": reply.text,
        "pieces": [[round(seconds, 3), text] for seconds, text in reply.pieces],
        "first_audio_ms": None if onset is None else round(1000 * (onset + frame * took / lasts)),
        "real_time_factor": round(took / lasts, 3),
        "seconds": round(reply.audio.duration, 3),
        "audio": reply.audio,
    }
