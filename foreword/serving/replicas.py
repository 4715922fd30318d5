"""Serve with copies of the server behind one address, by Ray Serve: each loads the model once, and all share the
store's folder.

Without RAY_ADDRESS a separate Ray is started, for this machine alone: it listens on loopback and wants a token that
nobody else has. With it the replicas go to that cluster, whose machines all have to see the folder under the same path.
Limits count in each replica; what one of them changes in the store the others see within a second. On stderr each line
of a replica's log begins with its name and process in brackets.
"""

import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from foreword.errors import ConfigError
from foreword.models.base import FrozenLM
from foreword.serving.app import Limits, Server, make_app
from foreword.serving.app.logs import event, to_stderr
from foreword.serving.engine import Engine, Room
from foreword.serving.keys import KeyRing
from foreword.serving.store import PromptStore

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

NAME, CONTROLLER = "foreword", "SERVE_CONTROLLER_ACTOR"
SPARE = 100  # requests beyond the limit that reach a replica, so that it refuses them in words of its own
SHARED = 80 * 2**20  # bytes of Ray's object store, which hardly anything of ours goes through
OWN_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # A Ray that takes no other machines calls its own 127.0.0.1, and then listens there.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_DEDUP_LOGS": "0",  # each request has its own line
    "RAY_COLOR_PREFIX": "0",
}
QUIET = {"enable_access_log": False, "log_level": "WARNING"}  # ours has a line of each request


@final
@dataclass(frozen=True)
class ReplicaPlan:
    """Hold what every replica is made of. `load` returns the model; the whole plan travels to other processes by
    pickle."""

    folder: Path
    load: Callable[[], FrozenLM]
    room: Room
    limits: Limits
    allow_other_weights: bool = False


@final
class Replica:
    """Run one model with its engine and its routes, in a separate process that Ray Serve starts and ends."""

    def __init__(self, plan: ReplicaPlan):
        from ray import serve

        name = serve.get_replica_context().replica_id.unique_id
        store, keys = PromptStore.open(plan.folder, create=True), KeyRing.open(plan.folder)
        self.engine = Engine(plan.load(), plan.room, allow_other_weights=plan.allow_other_weights, warn=_warn)
        self.server = Server(self.engine, store, keys, plan.limits, replica=name)

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self.server)

    def check_health(self) -> None:
        """Check that the engine runs and makes progress; Ray Serve replaces a replica that raises here."""
        if self.engine.ended or self.engine.failure is not None:
            raise RuntimeError(self.engine.failure or "the engine has ended")
        limits = self.server.limits
        if self.engine.held > max(limits.held, limits.seconds):
            raise RuntimeError(f"the engine has made no progress for {self.engine.held:.0f} seconds")

    async def drain(self) -> int:
        """Refuse new requests; return how many are still under way."""
        self.server.draining = True
        return self.server.active

    def __del__(self) -> None:
        self.engine.close(finish=False)


def serve_replicas(plan: ReplicaPlan, replicas: int, host: str, port: int, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then end what was accepted; a second signal ends it at once.

    Raises: ConfigError if Ray is missing or too old, if the address is taken, and if replicas cannot start.
    """
    held = _hold_port(host, port)
    port = held.getsockname()[1]
    first, second = threading.Event(), threading.Event()

    def stop(*_: object) -> None:
        (second if first.is_set() else first).set()

    with held, _ray() as serve:
        try:
            # Where a cluster has many machines, each answers at this address.
            http = {"host": host, "port": port, "keep_alive_timeout_s": math.ceil(plan.limits.idle)}
            serve.start(proxy_location="EveryNode", http_options=http, logging_config=QUIET)
            held.close()
            handle = _deployed(plan, replicas)
            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
            ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
            first.wait()
            _drain(handle, plan.limits.seconds, second)
            for number, handler in before.items():
                signal.signal(number, handler)
        finally:
            serve.shutdown()


@contextmanager
def _ray() -> Iterator[Any]:
    """Yield Ray Serve over a Ray that is reached or started here. Raises: ConfigError."""
    own = "RAY_ADDRESS" not in os.environ
    folder = tempfile.mkdtemp(prefix="fw-") if own else ""  # a short name, since sockets are in it
    before = os.environ.copy()
    try:
        if own:  # Ray reads them as it is imported, and so does all that it starts
            os.environ.update({**OWN_RAY, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        serve = _library()
        import ray

        try:
            if own:
                ray.init(
                    "local", include_dashboard=False, object_store_memory=SHARED, logging_level=logging.ERROR,
                    _temp_dir=f"{folder}/ray",  # within a folder of ours alone, since Ray opens its own to all
                )  # fmt: skip
            else:
                ray.init(logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"Ray cannot be started or reached ({str(error)[:300]}).") from error
        try:
            if not own and CONTROLLER in str(ray.util.list_named_actors(all_namespaces=True)):
                raise ConfigError("This cluster runs Ray Serve already; end that first (`serve shutdown`).")
            yield serve
        finally:
            ray.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(before)
        if own:
            shutil.rmtree(folder, ignore_errors=True)


def _library() -> Any:
    """Import Ray Serve and return it. Raises: ConfigError that says what to install."""
    try:
        from ray import serve
        from ray.serve.handle import DeploymentHandle
    except ImportError as error:
        raise ConfigError(f"Replicas need Ray Serve ({error.name}): pip install 'foreword[ray]'.") from None
    if not callable(getattr(DeploymentHandle, "broadcast", None)):
        raise ConfigError("Replicas need a newer Ray Serve: pip install --upgrade 'foreword[ray]'.")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return serve


def _deployed(plan: ReplicaPlan, replicas: int) -> "DeploymentHandle[Any]":
    """Start all replicas; return their handle once they answer. Raises: ConfigError with the reason why they cannot
    start."""
    import ray
    from ray import serve

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    made = serve.deployment(
        serve.ingress()(Replica), name=NAME, num_replicas=replicas, max_ongoing_requests=plan.limits.requests + SPARE,
        ray_actor_options={
            "num_cpus": share(cores, replicas), "num_gpus": 1 / math.ceil(replicas / gpus) if gpus else 0,
        },
        # What is under way has ended before, or is not waited for.
        graceful_shutdown_timeout_s=5.0, graceful_shutdown_wait_loop_s=0.1, health_check_period_s=2.0,
        logging_config=QUIET, max_constructor_retry_count=1,
    )  # fmt: skip
    try:
        return serve.run(made.bind(plan), name=NAME, logging_config=QUIET)
    except RuntimeError:
        told = serve.status().applications[NAME].deployments[NAME].message
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if re.match(r"[\w.]*Error", line)), lines[-1])
        raise ConfigError(f"The replicas cannot start: {reason[:500]}") from None


def share(cores: Sequence[int], replicas: int) -> float:
    """Return how many processors each replica may have, from the number of each machine; less than one if they are
    few."""
    for size in range(max(cores, default=0), 0, -1):
        if sum(own // size for own in cores) >= replicas:
            return float(size)
    return 1 / math.ceil(replicas / max(1, sum(cores)))


def _drain(handle: "DeploymentHandle[Any]", seconds: float, hurry: threading.Event) -> None:
    """Wait until no replica has a request under way, for `seconds` at most, or until `hurry` is set."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not hurry.is_set():
        # A replica that died has nothing under way any more.
        left = handle.broadcast("drain").results(timeout_s=10.0)
        if not sum(one for one in left if isinstance(one, int)):
            return
        hurry.wait(0.1)


def _hold_port(host: str, port: int) -> socket.socket:
    """Return a socket bound to the port, or for 0 to a free one, so that nothing that Ray starts is given it before
    Ray's proxy, which may bind it too while nobody listens. Raises: ConfigError if the port is taken."""
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise ConfigError(f"The server cannot listen on {host}:{port} ({error.strerror}).") from error
    return held


def _warn(line: str) -> None:
    to_stderr(event(level="warning", message=line))
