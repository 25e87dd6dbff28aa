"""`vivavoce talk`: the server, its page, and every dialect, until Ctrl-C."""

from pathlib import Path
from typing import Any

import typer

from vivavoce.cli.options import DEVICE, DTYPE, ENGINE, WEIGHTS
from vivavoce.errors import RequestError

DRAIN = 10.0  # seconds that conversations have to end when several processes are stopped


def register(app: typer.Typer) -> None:
    """Add the command `talk`."""

    @app.command("talk")
    def talk(
        model: str = typer.Argument("mini", help="mini, tone, echo, a model or run directory, or a hub id."),
        host: str = typer.Option("127.0.0.1", help="Address to listen to; 0.0.0.0 for all of this machine."),
        port: int = typer.Option(8998, min=0, max=65535, help="Port; 0 for any that is free."),
        rows: int = typer.Option(0, min=0, help="Conversations at once; 0: as many as the machine is measured to do."),
        queue: int = typer.Option(64, min=0, help="Clients that may wait for one."),
        each: int = typer.Option(16, min=1, help="Conversations at once of one key, and of one address."),
        session: float = typer.Option(1800.0, min=1, help="Seconds that a conversation may last."),
        idle: float = typer.Option(120.0, min=1, help="Seconds without input after which it ends."),
        keys: Path = typer.Option(None, help="YAML file of API keys; without one, all of this machine may talk."),
        new_key: str = typer.Option(None, metavar="NAME", help="Print a new key and its line for --keys, then leave."),
        origin: list[str] = typer.Option([], help="Another page that may talk here, as https://example.org."),
        transcriber: str = typer.Option(
            None, metavar="NAME", help="Recogniser of what the user says, where the model does not tell: pocketsphinx, "
            "or a path or hub id of one in transformers' format.",
        ),
        record: Path = typer.Option(None, metavar="FOLDER", help="Keep each conversation: two-channel wav and events."),
        ice: list[str] = typer.Option([], help="For WebRTC behind NAT: stun:HOST:PORT, turn:USER:PASSWORD@HOST:PORT."),
        tls: str = typer.Option(None, metavar="auto|CERT,KEY", help="https: a certificate made here, or one's own."),
        replicas: str = typer.Option(None, metavar="N|MIN:MAX", help="Processes, by Ray Serve; MIN:MAX: as needed."),
        ray: str = typer.Option(None, metavar="ADDRESS", help="Ray cluster to run them on; default: this machine."),
        device: str = DEVICE,
        dtype: str = DTYPE,
        engine: str = ENGINE,
        weights: str = WEIGHTS,
    ) -> None:
        """Serve a model to the browser and to the clients that you have; Ctrl-C ends it."""
        if new_key is not None:
            _print_key(new_key)
            return
        if replicas is not None or ray is not None:
            if engine != "torch":
                raise RequestError("--engine: several processes (--replicas, --ray) take torch: leave it out")
            _serve_many(
                host, port, tls, ray, model=model, device=device, dtype=dtype, replicas=replicas or "1", rows=rows,
                queue=queue, each=each, session=session, idle=idle, keys=keys, origins=origin, record=record,
                transcriber=transcriber, ice=ice,
            )
            return
        import vivavoce
        from vivavoce.cli.options import placed, use_few_threads
        from vivavoce.serving.access import Access, Limits, is_this_machine, read_keys
        from vivavoce.serving.app import Server, create_app
        from vivavoce.serving.core import Core
        from vivavoce.serving.recording import Recorder
        from vivavoce.serving.run import bind, configure
        from vivavoce.serving.settings import ServerSettings
        from vivavoce.serving.tls import tls_of
        from vivavoce.serving.webrtc.ice import Ice

        calls = Ice.of(host, tuple(ice)).check()
        access = Access(read_keys(keys) if keys else {}, tuple(origin), Limits(conversations=each))
        secured = tls_of(tls, host) if tls else None
        listening = bind(host, port)
        loaded = vivavoce.load(model, **placed(device, dtype), engine=engine, weights=weights)
        use_few_threads(loaded)
        settings = ServerSettings(rows=rows, queue=queue, session=session, idle=idle)
        core = Core(loaded, model, settings, transcriber=_transcriber(transcriber, loaded, model))
        where = f"http{'s' if secured else ''}://{host}:{listening.getsockname()[1]}"

        def ready() -> None:
            typer.echo(f"talk to {model} at {where}: {core.rows} at once (Ctrl-C ends it)")
            if secured:
                typer.echo(f"the certificate's SHA-256: {secured.fingerprint}")
            if record:
                typer.echo(f"conversations are recorded into {record}")

        kept = Recorder(record) if record else None
        server = Server(core, access, is_this_machine(host), ready=ready, recorder=kept, ice=calls)
        options = secured.options() if secured else {}
        configure(create_app(server), host, port, **options).run(sockets=[listening])


def _transcriber(name: str | None, model: Any, served: str) -> Any:
    """The recogniser of that name; `RequestError` where the model tells the user's words itself."""
    if name is None:
        return None
    from vivavoce.evaluation.transcribers import load_transcriber
    from vivavoce.serving.recognition import writes_of

    if writes_of(model)[0]:
        raise RequestError(f"{served} tells what the user says itself: leave --transcriber out")
    return load_transcriber(name)


def _serve_many(host: str, port: int, tls: str | None, address: str | None, **settings: Any) -> None:
    """Several processes, by Ray Serve, until Ctrl-C or SIGTERM."""
    import signal
    import threading

    from pydantic import ValidationError

    from vivavoce.cli.options import placed
    from vivavoce.serving.access import is_this_machine
    from vivavoce.serving.cluster.deploy import running
    from vivavoce.serving.cluster.settings import ClusterSettings
    from vivavoce.serving.tls import tls_of

    secured = tls_of(tls, host) if tls else None
    if address is None:
        placed(settings["device"], settings["dtype"])  # which says at once what this machine does not have
    # On this machine the number is the user's own affair; a cluster counts, so as to spread them.
    cpus = 0.0 if address is None else 1.0
    gpus = 1.0 if address is not None and settings["device"].startswith("cuda") else 0.0
    try:
        made = ClusterSettings(host=host, cpus=cpus, gpus=gpus, drain=DRAIN, local=is_this_machine(host), **settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"--{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from error
    over = threading.Event()
    certificate = (str(secured.certificate), str(secured.key)) if secured else None
    with running(made, host, port, address, certificate) as (listening, handle):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: over.set())
        rows = [told["health"]["rows"] for _, told in handle.broadcast("look").results(timeout_s=60)]
        where = f"http{'s' if secured else ''}://{host}:{listening}"
        typer.echo(f"talk to {settings['model']} at {where}: {' + '.join(map(str, rows))} at once (Ctrl-C ends it)")
        if secured:
            typer.echo(f"the certificate's SHA-256: {secured.fingerprint}")
        over.wait()
        typer.echo(f"no new conversations; those that go on have {DRAIN:.0f} s")


def _print_key(name: str) -> None:
    import secrets

    from vivavoce.serving.access import digest_of

    secret = f"vv_{secrets.token_urlsafe(32)}"
    typer.echo(f"key, shown once:  {secret}\nfor --keys:       {name}: {{sha256: {digest_of(secret)}}}")
