"""The proposer that a config asks for."""

import dataclasses
from typing import Protocol, runtime_checkable

from foreword.errors import ConfigError
from foreword.methods.instructions.proposers import Filler, LocalWriter, RemoteWriter, Sampling, Writer
from foreword.methods.instructions.remote import Endpoint, Remote
from foreword.models.base import FrozenLM
from foreword.training.answer_log import Ledger


@runtime_checkable
class ProposerOptions(Protocol):
    """The options that say who proposes."""

    @property
    def proposer(self) -> str: ...
    @property
    def url(self) -> str | None: ...
    @property
    def remote_model(self) -> str | None: ...
    @property
    def key_variable(self) -> str: ...
    @property
    def allow_remote(self) -> bool: ...
    @property
    def token_budget(self) -> int: ...


def check_proposer(config: ProposerOptions) -> None:
    """Raises: ConfigError for a remote proposer that is not allowed, or options that contradict each other."""
    remote = config.proposer == "remote"
    if remote and not config.url:
        raise ConfigError("proposer=remote needs url=ADDRESS of an OpenAI-compatible endpoint.")
    if config.url and not remote:
        raise ConfigError(f"url={config.url} was given, but proposer={config.proposer}; write proposer=remote too.")
    if remote and not config.allow_remote:
        raise ConfigError(
            f"proposer=remote would send training rows to {config.url}; pass --allow-remote (allow_remote=true) if "
            "they may leave this machine."
        )


def proposing(lm: FrozenLM, config: ProposerOptions, how: Sampling, ledger: Ledger) -> Writer | Filler | None:
    """The writer or filler; None for proposer=none.

    Raises: ConfigError as `check_proposer`; ModelError where another model cannot be loaded.
    """
    check_proposer(config)
    if config.proposer == "none":
        return None
    if config.proposer == "remote":
        endpoint = Endpoint(
            config.url or "", config.remote_model or "", config.key_variable, token_budget=config.token_budget
        )
        return RemoteWriter(Remote(endpoint, ledger), how)
    if config.proposer != "self":
        from foreword.models.load import load

        lm = load(config.proposer)
    who = identity(lm)
    return LocalWriter(lm, how, ledger, who) if lm.kind == "causal" else Filler(lm, how, ledger, who)


def identity(lm: FrozenLM) -> str:
    """What tells a model from others in the ledger."""
    known = dataclasses.asdict(lm.fingerprint())
    return f"{lm.kind} {known['tokenizer']} {known['weights']} {known['dtype']} {known['quantisation']}"
