"""Propose words, by a model that writes (here or behind an endpoint), or a masked model that fills gaps."""

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch

from foreword.core.format import Decoding, Format
from foreword.core.shapes import Tensor
from foreword.core.template import Template
from foreword.errors import ConfigError, DataError
from foreword.methods.instructions.remote import Endpoint, Remote
from foreword.methods.instructions.vocabulary import piece_logprobs
from foreword.models.base import FrozenLM
from foreword.models.encoding.chat import begun
from foreword.models.encoding.encoder import Encoder, PlainRow, collate, prepare
from foreword.models.encoding.tokenise import Pieces
from foreword.models.generate import Ask, GeneratedText, write
from foreword.training.answer_log import key_of
from foreword.training.contract import SearchState


@runtime_checkable
class ProposerOptions(Protocol):
    """Describe the options that choose a proposer."""

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


@final
@dataclass(frozen=True)
class ProposalSampling:
    """Hold the options by which proposals are sampled."""

    temperature: float
    top_p: float
    max_tokens: int


class Proposer(ABC):
    """Continue a prompt, or answer it."""

    @abstractmethod
    def fits(self, prompt: str) -> bool:
        """Return whether the prompt leaves room for an answer."""

    @abstractmethod
    def write(self, asked: Sequence[tuple[str, int]], count: int) -> Iterator[list[str]]:
        """Sample `count` answers to each prompt, in order; the same for the same prompt and seed.

        Raises: BudgetSpentError (remote), after the answers that were still paid for.
        """


@final
class LocalWriter(Proposer):
    """Write with a causal model on this machine. `who` tells it from other models in the answer log.

    A prompt's last line begins the answer. A model that is asked in messages gets that line as the beginning of its own
    turn: small models that are asked to continue a line of the user's turn answer the examples instead.
    """

    def __init__(self, lm: FrozenLM, how: ProposalSampling, state: SearchState, who: str) -> None:
        self._lm, self._how, self._state, self._who = lm, how, state, who
        asked = [{"role": "user", "content": "{prompt}"}]
        template = begun(lm.tokenizer, asked, "begun") if lm.instructed else Template.parse("{prompt}")
        room = max(1, lm.dims.context - how.max_tokens)
        self._encoder = Encoder.build(lm, Format(template, truncate="error", max_length=room))

    def _fields(self, prompt: str) -> dict[str, str]:
        if not self._lm.instructed:
            return {"prompt": prompt}
        asked, _, begins = prompt.rpartition("\n")
        return {"prompt": asked.strip(), "begun": begins}

    def fits(self, prompt: str) -> bool:
        try:
            self._encoder.encode(self._fields(prompt))
        except DataError:
            return False
        return True

    def write(self, asked: Sequence[tuple[str, int]], count: int) -> Iterator[list[str]]:
        how = self._how
        keys = [
            key_of("write", self._who, prompt, count, seed, how.temperature, how.top_p, how.max_tokens)
            for prompt, seed in asked
        ]
        missing = [i for i, key in enumerate(keys) if self._state.get(key) is None]
        # The model's own loop goes on with many prompts at once; a family that has none there is left to the library.
        generate = self._generate if self._lm.takes_prefix else self._generate_by_library
        generate([asked[i] for i in missing], [keys[i] for i in missing], count)
        for key in keys:
            yield list(self._state.get(key))

    def _generate(self, asked: Sequence[tuple[str, int]], keys: Sequence[str], count: int) -> None:
        """Write the answers to each prompt, and store them when the last of them has ended."""
        how = self._how
        # An instruction is one line (`proposal_prompts.instruction_of`).
        decoding = Decoding(
            how.max_tokens, do_sample=True, temperature=how.temperature, top_p=how.top_p, stop_strings=("\n",)
        )
        encoded = self._encoder.encode_rows([PlainRow(self._fields(prompt)) for prompt, _ in asked])
        asks = [
            Ask(e, None, 0, decoding, tuple(range(seed, seed + count)), count)
            for e, (_, seed) in zip(encoded, asked, strict=True)
        ]
        texts: list[dict[int, str]] = [{} for _ in asked]

        def keep(prompt: int, sample: int, written: GeneratedText) -> int:
            texts[prompt][sample] = written.text
            if len(texts[prompt]) == count:
                self._state.put({keys[prompt]: [texts[prompt][n] for n in range(count)]})
            return count - len(texts[prompt])

        write(self._lm, asks, None, keep)

    @torch.no_grad()
    def _generate_by_library(self, asked: Sequence[tuple[str, int]], keys: Sequence[str], count: int) -> None:
        lm, how = self._lm, self._how
        for (prompt, seed), key in zip(asked, keys, strict=True):
            batch = collate([self._encoder.encode(self._fields(prompt))])
            inputs, _ = prepare(lm, batch, None, torch.zeros(1, dtype=torch.long))
            devices = [lm.device] if lm.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                ids_XL = lm.generate(
                    inputs,
                    do_sample=True,
                    temperature=how.temperature,
                    top_p=how.top_p,
                    top_k=0,
                    max_new_tokens=how.max_tokens,
                    num_return_sequences=count,
                )
            self._state.put({key: lm.tokenizer.batch_decode(ids_XL, skip_special_tokens=True)})


@final
class RemoteWriter(Proposer):
    """Write with a model behind an endpoint; one call for each text."""

    def __init__(self, remote: Remote, how: ProposalSampling) -> None:
        self._remote, self._how = remote, how

    def fits(self, prompt: str) -> bool:
        return True

    def write(self, asked: Sequence[tuple[str, int]], count: int) -> Iterator[list[str]]:
        how = self._how
        options = {"max_tokens": how.max_tokens, "temperature": how.temperature, "top_p": how.top_p}
        for prompt, seed in asked:
            yield [self._remote.write(prompt, seed + n, **options) for n in range(count)]


@final
class Filler:
    """Fill gaps with a masked model, one token after the other, each sampled."""

    def __init__(self, lm: FrozenLM, how: ProposalSampling, state: SearchState, who: str) -> None:
        self._lm, self._how, self._state, self._who = lm, how, state, who
        self._pieces = Pieces.of(lm.tokenizer, "masked")
        self._mask = int(lm.tokenizer.mask_token_id)

    def insert(self, before: str, after: str, length: int, count: int, seed: int) -> list[str]:
        """Return `count` texts of `length` tokens between two texts; `after` is cut where the model's context ends."""
        key = key_of("insert", self._who, before, after, length, count, seed, self._how.temperature)
        result = self._state.get(key)
        if result is None:
            head = [*self._pieces.before, *self._pieces.start([before])[0]]
            room = self._lm.dims.context - len(head) - length - len(self._pieces.after_row)
            tail = [*self._pieces.following([after])[0][: max(0, room)], *self._pieces.after_row]
            gap = list(range(len(head), len(head) + length))
            rows = [[*head, *[self._mask] * length, *tail] for _ in range(count)]
            filled = self._fill(rows, [gap] * count, seed)
            result = [self._text(row[len(head) : len(head) + length]) for row in filled]
            self._state.put({key: result})
        return list(result)

    def resample(self, text: str, count: int, seed: int, share: float = 0.3) -> list[str]:
        """Return the text `count` times with a share of its tokens drawn again, at different positions each time."""
        key = key_of("resample", self._who, text, count, seed, share, self._how.temperature)
        result = self._state.get(key)
        if result is None:
            ids = self._pieces.start([text])[0][: self._lm.dims.context - 4]
            head, tail = [*self._pieces.before], [*self._pieces.after_row]
            rng = random.Random(seed)
            masks = max(1, round(share * len(ids)))
            rows, gaps = [], []
            for _ in range(count):
                gap = rng.sample(range(len(ids)), masks)
                rows.append([*head, *(self._mask if i in gap else piece for i, piece in enumerate(ids)), *tail])
                gaps.append([len(head) + i for i in gap])
            filled = self._fill(rows, gaps, seed)
            result = [self._text(row[len(head) : len(head) + len(ids)]) for row in filled]
            self._state.put({key: result})
        return list(result)

    def _fill(self, rows: list[list[int]], gaps: list[list[int]], seed: int) -> list[list[int]]:
        """Fill each row's gaps in their order, and return the rows."""
        generator = torch.Generator().manual_seed(seed)
        for step in range(len(gaps[0])):
            at = [gap[step] for gap in gaps]
            logp_BV = piece_logprobs(self._lm, rows, at)
            for row, column, logp_V in zip(rows, at, logp_BV, strict=True):
                row[column] = _drawn(logp_V, self._how, generator)
        return rows

    def _text(self, ids: list[int]) -> str:
        return self._lm.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _drawn(logp_V: Tensor, how: ProposalSampling, generator: torch.Generator) -> int:
    """Draw a token from the likeliest ones that together have probability `top_p` (Holtzman et al. 2020)."""
    p_V, order_V = (logp_V / how.temperature).softmax(-1).sort(descending=True)
    kept_V = p_V.cumsum(0) - p_V < how.top_p
    return int(order_V[torch.multinomial(p_V * kept_V, 1, generator=generator)])


def check_proposer(config: ProposerOptions) -> None:
    """Check a proposer's options. Raises: ConfigError for options that conflict, or a remote proposer not allowed."""
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


def proposing(
    lm: FrozenLM, config: ProposerOptions, how: ProposalSampling, state: SearchState
) -> Proposer | Filler | None:
    """Return the writer or filler; None for proposer=none.

    Raises: ConfigError as `check_proposer` says; ModelError if another model cannot be loaded.
    """
    check_proposer(config)
    if config.proposer == "none":
        return None
    if config.proposer == "remote":
        endpoint = Endpoint(
            config.url or "", config.remote_model or "", config.key_variable, token_budget=config.token_budget
        )
        return RemoteWriter(Remote(endpoint, state), how)
    if config.proposer != "self":
        from foreword.models.load import load

        lm = load(config.proposer)
    who = identity(lm)
    return LocalWriter(lm, how, state, who) if lm.kind == "causal" else Filler(lm, how, state, who)


def identity(lm: FrozenLM) -> str:
    """Return a text that tells a model from others in the search state."""
    known = dataclasses.asdict(lm.fingerprint())
    return f"{lm.kind} {known['tokenizer']} {known['weights']} {known['dtype']} {known['quantisation']}"
