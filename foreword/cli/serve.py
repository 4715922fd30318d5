"""Define `foreword serve`: thousands of prompts over one model, by HTTP."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foreword.cli.console import note, size
from foreword.cli.loading import model_override
from foreword.cli.shared_options import ModelChoice, model_options
from foreword.errors import ConfigError

if TYPE_CHECKING:
    from foreword.serving.store import PromptStore


def _bytes(ctx: click.Context, parameter: click.Parameter, given: str) -> int:
    """Return the bytes in 512MB, 2GB, or a number of bytes."""
    from foreword.serving.quota import parse_size

    try:
        return parse_size(given)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


@click.command(short_help="Serve learnt prompts over one model, by HTTP.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than this machine need keys.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option("--create", is_flag=True, help="Begin with an empty store where DIR has none.")
@click.option("--memory", default="1GB", show_default=True, callback=_bytes, help="For prompts in memory.")
@click.option("--compiled", default="1GB", show_default=True, callback=_bytes, help="For compiled prompts.")
@click.option("--cache", default="2GB", show_default=True, callback=_bytes, help="For texts being continued.")
@click.option("--rows", default=32, show_default=True, type=click.IntRange(min=1), help="Texts continued at once.")
@click.option("--waiting", default=4096, show_default=True, type=click.IntRange(min=1), help="Rows that may wait.")
@click.option("--max-work", default=200_000, show_default=True, type=click.IntRange(min=1),
              help="Tokens of one request's rows, with label words; a prompt's may take a quarter.")  # fmt: skip
@click.option("--max-tokens", default=4096, show_default=True, type=click.IntRange(min=1), help="New pieces a text.")
@click.option("--max-text", default=100_000, show_default=True, type=click.IntRange(min=1), help="Characters.")
@click.option("--max-body", default="1MB", show_default=True, callback=_bytes, help="Of one request.")
@click.option("--max-upload", default="64MB", show_default=True, callback=_bytes, help="Of one prompt.")
@click.option("--max-prompts", default=100_000, show_default=True, type=click.IntRange(min=1), help="In the store.")
@click.option("--max-requests", default=512, show_default=True, type=click.IntRange(min=1), help="Under way at once.")
@click.option("--key-limit", multiple=True, metavar="NAME=N", help="Of each key that has none; as in foreword keys.")
@click.option("--max-connections", default=2048, show_default=True, type=click.IntRange(min=1), help="Open at once.")
@click.option(
    "--idle", default=10.0, show_default=True, type=click.FloatRange(min=0.1), help="Of a connection, in seconds."
)
@click.option("--min-rate", default="4KB", show_default=True, callback=_bytes, help="Of a body, in bytes a second.")
@click.option(
    "--held", default=30.0, show_default=True, type=click.FloatRange(min=0.1), help="Seconds, then not ready."
)
@click.option("--seconds", default=120.0, show_default=True, type=click.FloatRange(min=0.1), help="For one answer.")
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(min=1), help="Copies, by Ray Serve.")
@click.option("--allow-other-weights", is_flag=True, help="Use prompts that were learnt with other weights.")
@model_override
@model_options
def serve(
    folder: Path, host: str, port: int, create: bool, memory: int, compiled: int, cache: int, rows: int, waiting: int,
    max_work: int, max_tokens: int, max_text: int, max_body: int, max_upload: int, max_prompts: int, max_requests: int,
    key_limit: tuple[str, ...], max_connections: int, idle: float, min_rate: int, held: float, seconds: float,
    replicas: int, allow_other_weights: bool, model: str | None, how: ModelChoice,
) -> None:  # fmt: skip
    """Serve the prompts of DIR over one model: the folder that `train --tasks`, `compare` or `train --out` wrote.

    The page is at /, OpenAI's routes at /v1/completions, /v1/chat/completions and /v1/models, labels at /v1/classify,
    and prompts come and go at /v1/prompts. Without keys (`foreword keys`) only this machine's programs are answered.

    \b
    foreword serve store/
    curl http://127.0.0.1:8000/v1/classify -H 'Content-Type: application/json' \\
      -d '{"model": "acme", "input": "a text"}'
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401

        from foreword.serving.app import Limits, Server
    except ImportError as error:
        raise ConfigError(f"Serving needs more libraries ({error.name}): pip install 'foreword[serve]'.") from None
    from foreword.serving.engine import Engine, Room
    from foreword.serving.keys import KeyRing
    from foreword.serving.quota import Quota
    from foreword.serving.run import EngineFailed, require_loopback, run
    from foreword.serving.store import PromptStore

    keys = KeyRing.open(folder)
    require_loopback(host, keys)
    store = PromptStore.open(folder, create=create)
    if store.skipped:
        shown = ", ".join(store.skipped[:5]) + (" and more" if len(store.skipped) > 5 else "")
        note(f"not served, since no prompts or not to be named so: {shown}")
    if store.read_only:
        note("the folder is read-only: its prompts are served, and none can be added, changed or removed")
    for sentence in [*store.damaged.values()][:5]:
        note(sentence)
    if len(store.damaged) > 5:
        note(f"{len(store.damaged) - 5} more prompts are damaged")
    limits = Limits(
        max_body, max_upload, max_text, max_tokens, 256, max_requests, max_prompts, seconds,
        connections=max_connections, idle=idle, rate=max(1, min_rate), held=held, key=Quota().with_limits(key_limit),
    )  # fmt: skip
    room = Room(memory, compiled, cache, rows, waiting, max_work)
    name, chosen = _model(store, model, how)
    prompts = f"{len(store.names()):,} prompts"
    if replicas > 1:
        from foreword.serving.replicas import ReplicaPlan, serve_replicas

        plan = ReplicaPlan(folder.resolve(), partial(chosen.load, name), room, limits, allow_other_weights)
        have = f"{prompts} over {replicas} replicas of {name}"
        serve_replicas(plan, replicas, host, port, ready=lambda address: note(f"{address} serves {have}"))
        return
    lm = chosen.load(name)
    engine = Engine(lm, room, allow_other_weights=allow_other_weights, warn=note)
    server = Server(engine, store, keys, limits)
    try:
        have = f"{prompts} over {lm.name}, {size(memory)} in memory, {size(compiled)} compiled"
        run(server, host, port, ready=lambda address: note(f"{address} serves {have}"))
    except EngineFailed as error:
        raise click.ClickException(str(error)) from None
    finally:
        engine.close(finish=False)


def _model(store: "PromptStore", model: str | None, how: ModelChoice) -> tuple[str, ModelChoice]:
    """Return the name of the model to load and how: the one given, or the one that all prompts were made for.

    Raises: ConfigError if no prompt names a model, or if two prompts name different ones.
    """
    from foreword.core.artefact import RECORD
    from foreword.core.plain import read_json

    if model is not None:
        return model, how
    made_for: dict[tuple[str, str | None], str] = {}
    for name in store.names():
        try:
            told = read_json(store.resolve(name).folder / RECORD)["model"]
            made_for.setdefault((told["name"], told["kind"]), name)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # whoever asks for it is told that it is damaged
    if not made_for:
        raise ConfigError("The store has no prompt that says which model to load; give --model.")
    if len(made_for) > 1:
        (one, a), (other, b), *_ = made_for.items()
        raise ConfigError(f"{a} was made for {one[0]} ({one[1]}) and {b} for {other[0]} ({other[1]}); give --model.")
    [(name, kind)] = made_for
    return name, how.with_kind(kind)
