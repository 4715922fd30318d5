"""Compare starts on the same few-shot episodes, without steps and adapted, with the controls that a claim needs.

Every arm's rate is chosen on validation episodes, from one list for all; only then are test episodes read, the same for
every arm. Results that the folder already holds are not measured again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from foreword.core.artefact import Artefact
from foreword.core.files import write_whole
from foreword.core.format import Format
from foreword.core.locks import held
from foreword.errors import ConfigError, DataError
from foreword.inference.scoring import score_rows
from foreword.methods.meta.adapted_start import adapt_start, leaves_of, rates_for
from foreword.methods.meta.episode_rows import EpisodeRows
from foreword.methods.meta.prototypes import prototype_scores
from foreword.methods.registry import train
from foreword.models.base import FrozenLM
from foreword.models.compatibility import check
from foreword.tasks.episodes import Episode, EpisodeSource, Split

HowKind = Literal["zero-step", "adapted", "prototypes", "fine-tuning"]
RESULTS = "episodes.jsonl"
FOLD = 4  # episodes that adapt side by side


@dataclass(frozen=True, eq=False)
class EpisodeArm:
    """Describe one arm of the comparison: a start, used without steps or adapted, or an arm that needs no start."""

    name: str
    how: HowKind
    start: Artefact | None = None

    @property
    def label(self) -> str:
        return self.name if self.how in ("adapted", self.name) else f"{self.name}, {self.how}"

    @property
    def tuned(self) -> bool:
        """Return whether the arm has a learning rate, which is chosen on validation episodes."""
        return self.how in ("adapted", "fine-tuning")


@dataclass(frozen=True)
class Protocol:
    """Describe how arms are measured: on `episodes` episodes of `split`, after `steps` of adaptation.

    The rate of the steps is the best of `rates` on `validation` episodes. `fine_tuning_rates` are the rates of
    fine-tuning, which changes the model's own parameters.
    """

    episodes: int = 200
    validation: int = 50
    steps: int = 5
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    fine_tuning_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    seed: int = 0
    split: Split = "test"
    transductive: bool = False


@dataclass(frozen=True, eq=False)
class EpisodeScores:
    """Hold one arm's results: the right query rows of each class in each episode, and the query rows of a class."""

    arm: str
    how: str
    start: str | None
    rate: float | None
    split: str
    hash: str
    classes_EN: tuple[tuple[str, ...], ...]
    right_EN: tuple[tuple[int, ...], ...]
    queries_E: tuple[int, ...]

    @property
    def accuracy_E(self) -> np.ndarray:
        """Return the accuracy on the query rows of each episode."""
        return np.array([sum(r) / (len(r) * q) for r, q in zip(self.right_EN, self.queries_E, strict=True)])


def measure_arms(
    lm: FrozenLM,
    source: EpisodeSource,
    forms: Sequence[Format],
    arms: Sequence[EpisodeArm],
    protocol: Protocol,
    *,
    out: Path,
    tell: Callable[[str], None] | None = None,
) -> list[EpisodeScores]:
    """Return every arm's results on the test episodes, in order. Results are read from `out`; missing ones are added.

    `forms` are the formats of the source's tasks, without slots.

    Raises: DataError if episodes cannot be drawn; ArtefactError for starts of another model.
    """
    with held(out / RESULTS, "The results"):
        return _measure(lm, source, forms, arms, protocol, out, tell)


def _measure(
    lm: FrozenLM,
    source: EpisodeSource,
    forms: Sequence[Format],
    arms: Sequence[EpisodeArm],
    protocol: Protocol,
    out: Path,
    tell: Callable[[str], None] | None,
) -> list[EpisodeScores]:
    tried = {"adapted": protocol.rates, "fine-tuning": protocol.fine_tuning_rates}
    if not protocol.validation and any(len(tried.get(arm.how, ())) > 1 for arm in arms):
        raise ConfigError("Several rates were given and no validation episodes to choose on; give one rate, or some.")
    book = _Book(out / RESULTS)
    tuning = source.episodes("validation", protocol.seed, protocol.validation) if protocol.validation else []
    test = source.episodes(protocol.split, protocol.seed, protocol.episodes)
    desks: dict[str, _Desk] = {}
    results = []
    for arm in arms:
        if arm.start is not None:
            check(lm, arm.start)
        key = "" if arm.start is None else arm.start.sha256
        desk = desks.setdefault(
            key, _Desk(lm, source, [_form_of(arm, s, f) for s, f in zip(source.tasks, forms, strict=True)])
        )
        rate = None
        if arm.tuned:
            points = []
            for number, candidate in enumerate(tried[arm.how]):
                if len(tried[arm.how]) == 1:
                    points.append((0.0, 0, candidate))
                    break
                if tell:
                    tell(f"{arm.label}: rate {candidate:g} on {len(tuning)} validation episodes")
                point = book.get(desk, arm, candidate, protocol, "validation", tuning)
                points.append((float(point.accuracy_E.mean()), -number, candidate))
            rate = max(points)[2]
        if tell:
            tell(f"{arm.label}: {len(test)} {protocol.split} episodes" + (f" at {rate:g}" if rate else ""))
        results.append(book.get(desk, arm, rate, protocol, protocol.split, test))
    return results


def arms_of(starts: Mapping[str, Sequence[Artefact]], kinds: Sequence[HowKind]) -> list[EpisodeArm]:
    """Return the arms of starts, given by name (several are meta-training seeds), and the arms without a start."""
    results = [
        EpisodeArm(name, how, start)
        for how in kinds
        if how in ("adapted", "zero-step")
        for name, some in starts.items()
        for start in some
    ]
    return results + [EpisodeArm(how, how) for how in kinds if how in ("prototypes", "fine-tuning")]


class _Desk:
    """Hold the model and the rows of episodes, encoded in the formats of one start."""

    def __init__(self, lm: FrozenLM, source: EpisodeSource, forms: Sequence[Format]):
        self.lm, self.source, self.forms = lm, source, forms
        self._decks: dict[int, EpisodeRows] = {}

    def deck(self, extra: int) -> EpisodeRows:
        if extra not in self._decks:
            self._decks[extra] = EpisodeRows(self.lm, self.source, self.forms, extra)
        return self._decks[extra]

    def scores(
        self, arm: EpisodeArm, rate: float | None, protocol: Protocol, split: Split, group: list[Episode]
    ) -> list[np.ndarray]:
        """Return the scores (rows, classes) of the query rows of each episode of a group, in order."""
        if arm.how == "fine-tuning":
            return [self._tuned(e, split, rate or 0.0, protocol) for e in group]
        budget = self.lm.batch_tokens
        if arm.how == "prototypes":
            deck = self.deck(0)
            support, query = (deck.folds(split, group, (part,)) for part in ("support", "query"))
            result = prototype_scores(self.lm, support, query, len(group), budget, protocol.transductive)
        else:
            assert arm.start is not None, "zero-step and adapted arms have a start"
            leaves, extra, lens = leaves_of(self.lm, arm.start, protocol.transductive)
            deck = self.deck(extra)
            support, query = (deck.folds(split, group, (part,)) for part in ("support", "query"))
            steps = protocol.steps if arm.how == "adapted" else 0
            rates = rates_for(arm.start, leaves, rate or 0.0)
            some = adapt_start(lens, leaves, support, len(group), rates, steps, budget)
            result = lens.scores(some, support, query, budget)
        ends = np.cumsum([len(e.query) for e in group])[:-1]
        return np.split(torch.stack(result).double().numpy(), ends) if _even(group) else _ragged(result, group)

    def _tuned(self, episode: Episode, split: Split, rate: float, protocol: Protocol) -> np.ndarray:
        """Fine-tune the model on one episode, as on any task; return the scores (rows, classes) of its query rows."""
        task = self.source.as_task(split, episode)
        form = self.forms[episode.task]
        own = replace(form, labels=task.labels, words=tuple(form.words[c] for c in episode.classes))
        options = {
            "steps": protocol.steps, "learning_rate": rate, "batch_size": len(task.train), "warmup": 0,
            "schedule": "constant", "keep": "last", "eval_every": protocol.steps,
        }  # fmt: skip
        made = train(self.lm, task, "fine-tuning", seed=protocol.seed, form=own, **options).artefact
        return score_rows(self.lm, [(made, task.test)])[0].double().cpu().numpy()


def _form_of(arm: EpisodeArm, task: Any, plain: Format) -> Format:
    """Return the start's format for a task it was trained on, else the task's with as many slots as the start."""
    if arm.start is None:
        return plain
    for told in arm.start.recipe.get("tasks", []):
        if told["task"] == task.name and told["format"]["labels"] == list(plain.labels):
            return Format.from_json(told["format"])
    slots = arm.start.value.slots
    return replace(plain, template=plain.template.with_soft(slots)) if slots else plain


def _even(group: Sequence[Episode]) -> bool:
    return len({len(e.classes) for e in group}) == 1


def _ragged(found: Sequence[torch.Tensor], group: Sequence[Episode]) -> list[np.ndarray]:
    parts, at = [], 0
    for episode in group:
        parts.append(torch.stack(list(found[at : at + len(episode.query)])).double().numpy())
        at += len(episode.query)
    return parts


class _Book:
    """Keep results in a file of JSON lines; each result is written when an arm has been measured at one rate."""

    def __init__(self, file: Path):
        self._file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        try:
            self._lines = {record["key"]: record for record in map(json.loads, lines)}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is damaged ({error!r}); remove it to measure again") from error

    def get(
        self,
        desk: _Desk,
        arm: EpisodeArm,
        rate: float | None,
        protocol: Protocol,
        split: Split,
        episodes: list[Episode],
    ) -> EpisodeScores:
        told = {
            "model": desk.lm.fingerprint().weights, "start": None if arm.start is None else arm.start.sha256,
            "how": arm.how, "rate": rate, "steps": protocol.steps if arm.tuned else 0, "split": split,
            "hash": desk.source.hash(split, episodes), "forms": [form.to_json() for form in desk.forms],
            "transductive": protocol.transductive and (arm.start is None or arm.start.form == "pool"),
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        if key not in self._lines:
            self._lines[key] = {"key": key, **_answers(desk, arm, rate, protocol, split, episodes, told["hash"])}
            text = "".join(json.dumps(line) + "\n" for line in self._lines.values())
            write_whole(self._file, text.encode())
        return _measured({**self._lines[key], "arm": arm.name})


def _answers(
    desk: _Desk,
    arm: EpisodeArm,
    rate: float | None,
    protocol: Protocol,
    split: Split,
    episodes: list[Episode],
    told: str,
) -> dict[str, Any]:
    right = []
    for first in range(0, len(episodes), FOLD):
        group = episodes[first : first + FOLD]
        # One task's weights cannot share a pass with another's.
        alone = arm.start is not None and arm.start.value.changes_weights
        parts = [[e] for e in group] if alone else [group]
        scores = [s for part in parts for s in desk.scores(arm, rate, protocol, split, part)]
        for episode, score_QC in zip(group, scores, strict=True):
            guess_Q = score_QC.argmax(1)
            label_Q = np.array([episode.label(place, "query") for place in range(len(episode.query))])
            right.append([int(((guess_Q == c) & (label_Q == c)).sum()) for c in range(len(episode.classes))])
    tasks = desk.source.tasks
    measured = EpisodeScores(
        arm=arm.name,
        how=arm.how,
        start=None if arm.start is None else arm.start.sha256,
        rate=rate,
        split=split,
        hash=told,
        classes_EN=tuple(
            tuple(f"{tasks[e.task].name}: {tasks[e.task].labels[c]}" for c in e.classes) for e in episodes
        ),
        right_EN=tuple(map(tuple, right)),
        queries_E=tuple(len(e.query) // len(e.classes) for e in episodes),
    )
    return asdict(measured)


def _measured(record: Mapping[str, Any]) -> EpisodeScores:
    values = {name: record[name] for name in EpisodeScores.__dataclass_fields__}
    for name in ("classes_EN", "right_EN"):
        values[name] = tuple(map(tuple, values[name]))
    return EpisodeScores(**{**values, "queries_E": tuple(values["queries_E"])})
