"""Starting a server of several processes: the application for `serve deploy`, and the whole for `vivavoce talk`."""

import contextlib
import logging
import random
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivavoce.errors import RequestError, need
from vivavoce.ray_cluster import connected
from vivavoce.serving.access import read_keys
from vivavoce.serving.cluster import PURPOSE, proxy
from vivavoce.serving.cluster.replica import Replica
from vivavoce.serving.cluster.router import FreeRows
from vivavoce.serving.cluster.scaling import ByFreeRows
from vivavoce.serving.cluster.settings import ClusterSettings
from vivavoce.serving.run import bind

ray = need("ray", "ray", PURPOSE)
from ray import serve  # noqa: E402
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig  # noqa: E402

NAME = "vivavoce"
# What Ray's processes on this machine are told: ours; patience (a slow machine would have them killed as they start).
ENVIRONMENT = {proxy.VARIABLE: proxy.PATH, "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
LAST = 15.0  # seconds, after conversations have been told that the end has come, for the rest of a replica's end
LOGS = "ray/session_latest/logs/serve"  # in the folder for temporary files
OTHERS = 256  # requests at once of one replica that are no conversations: figures, REST, observers


def application(settings: ClusterSettings) -> Any:
    """Ray Serve's application, as `import_path: vivavoce.serving.cluster.deploy:application` asks for it."""
    least, most = settings.bounds
    keys = read_keys(settings.keys) if settings.keys else {}
    core = settings.server()
    options: dict[str, Any] = {"num_replicas": least}
    if most > least:
        policy = AutoscalingPolicy(policy_function=ByFreeRows, policy_kwargs={"spare": settings.spare})
        options = {"autoscaling_config": AutoscalingConfig(
            min_replicas=least, max_replicas=most, policy=policy, look_back_period_s=settings.look_back,
            upscale_delay_s=settings.upscale_delay, downscale_delay_s=settings.downscale_delay,
        )}  # fmt: skip
    routing: dict[str, Any] = {
        "request_router_class": FreeRows, "request_router_kwargs": {"lately": 2 * settings.stats + 1},
        "request_routing_stats_period_s": settings.stats,
    }
    deployment = serve.deployment(
        name=NAME, ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        # Beyond this Serve itself keeps connections waiting, without a word: dialects refuse sooner, in their own form.
        max_ongoing_requests=(core.rows or core.most_rows) + core.queue + OTHERS,
        request_router_config=RequestRouterConfig(**routing),
        graceful_shutdown_timeout_s=settings.drain + LAST, graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2.0, health_check_timeout_s=30.0, max_constructor_retry_count=3,
        logging_config={"enable_access_log": False, "log_level": "WARNING"}, **options,
    )(Replica)
    return deployment.bind(settings, keys, settings.secret or secrets.token_urlsafe(32))


@contextlib.contextmanager
def running(
    settings: ClusterSettings, host: str = "127.0.0.1", port: int = 8998, address: str | None = None,
    certificate: tuple[str, str] | None = None,
) -> Iterator[tuple[int, Any]]:
    """`with running(settings) as (port, handle):` the server runs while the block does; port 0: any that is free.

    address: of a Ray cluster that is there, where only the application is ours; None: one on this machine, for as long
    as the block runs. certificate: (PEM file of the certificate, of its key), for https. handle: Serve's, of the
    replicas. Raises `RequestError` where it cannot be started. At the end conversations have `settings.drain` seconds.
    """
    port = free_port(host, port)
    ours = address is None
    with connected(address, PURPOSE, ENVIRONMENT if ours else {}):
        http: dict[str, Any] = {"host": host, "port": port}
        if certificate is not None:
            http |= {"ssl_certfile": certificate[0], "ssl_keyfile": certificate[1]}
        try:
            serve.start(
                proxy_location="HeadOnly" if ours else "EveryNode", http_options=http,
                logging_config={"enable_access_log": False, "log_level": "WARNING"},
            )
            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            handle = serve.run(application(settings), name=NAME, route_prefix="/")
        except (RuntimeError, ray.exceptions.RayError) as error:
            logs = Path(tempfile.gettempdir(), LOGS)
            raise RequestError(f"the replicas did not start: {reason(error)}; see {logs}") from error
        try:
            yield port, handle
        finally:
            remove(settings.drain)


def reason(error: Exception) -> str:
    """What a replica itself has said before it ended, in one line; what Serve says of it (`error`) is less."""
    with contextlib.suppress(Exception):
        said = serve.status().applications[NAME].deployments[NAME].message.strip()
        return next(line for line in reversed(said.splitlines()) if line.strip()).strip()
    return str(error).split("\n")[0]


def free_port(host: str, port: int) -> int:
    """The port, if it can be had; for 0 a free one. Serve's proxy, a process of its own, takes it later: what is chosen
    here lies where neither Ray nor the system gives out ports meanwhile. Raises `RequestError`."""
    for asked in [port] if port else random.sample(range(20_000, 32_768), 20):
        try:
            made = bind(host, asked)
        except RequestError as error:
            refused = error
            continue
        made.close()
        return asked
    raise refused


def remove(drain: float) -> None:
    """End the application: its conversations have `drain` seconds. (Serve's own end would take its proxies, and with
    them every connection, away at once.)"""
    serve.delete(NAME, _blocking=False)
    end = time.monotonic() + drain + LAST
    while NAME in serve.status().applications and time.monotonic() < end:
        time.sleep(0.2)
