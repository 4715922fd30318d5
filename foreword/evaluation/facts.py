"""Answer facts of many relations, each with its own prompts and all in shared batches, by ranks among candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from foreword.core.artefact import Artefact
from foreword.core.prompts import HardPrompt
from foreword.core.template import Template
from foreword.errors import ConfigError, ForewordError
from foreword.inference.scoring import score_rows
from foreword.methods.registry import make_job
from foreword.models.base import FrozenLM
from foreword.models.encoding.tokenise import Pieces
from foreword.tasks.label_metrics import rank_metrics, ranks
from foreword.tasks.relations import Facts, Relation, fact_task, templates_of
from foreword.tasks.task import Task
from foreword.training.contract import Progress
from foreword.training.recipe import make_artefact
from foreword.training.trainer import train_many

Candidates = Literal["relation", "all"]
DRAWS = 2000


@final
@dataclass(frozen=True, eq=False)
class RelationQuery:
    """Hold a relation and its task over the candidates; if there is no task, `reason` says why."""

    relation: Relation
    task: Task | None
    reason: str = ""


@final
@dataclass(frozen=True, eq=False)
class RelationRanks:
    """Hold the ranks of the right objects of one relation under one arm, and the prompt that gave them."""

    relation: str
    arm: str
    seed: int
    artefact: Artefact
    rank_R: NDArray[np.int64]


def single_pieces(lm: FrozenLM, objects: Sequence[str]) -> tuple[str, ...]:
    """Return the objects that are one token inside a text, each token once.

    Some tokenizers have one token for "turkish" and "Turkish".
    """
    pieces = Pieces.of(lm.tokenizer, lm.kind)
    unknown = lm.tokenizer.unk_token_id
    kept: dict[int, str] = {}
    for name, ids in zip(objects, pieces.after(("a",), [f" {name}" for name in objects]), strict=True):
        if len(ids) == 1 and ids[0] != unknown:
            kept.setdefault(ids[0], name)
    return tuple(kept.values())


def ask(
    lm: FrozenLM,
    facts: Facts,
    candidates: Candidates,
    *,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> list[RelationQuery]:
    """Return each relation as a task over its objects, or over all objects of the source, that are one token."""
    everything = single_pieces(lm, facts.objects)
    asked = []
    for relation in facts.relations.values():
        own = everything if candidates == "all" else single_pieces(lm, relation.objects)
        try:
            if lm.kind not in templates_of(relation.template):
                raise ConfigError(
                    f"the template {relation.template!r} goes on after its answer, which {lm.kind} models cannot"
                )
            task = fact_task(relation, own).limit(train=train, validation=train, test=test, seed=seed)
            asked.append(RelationQuery(relation, task))
        except ForewordError as error:
            asked.append(RelationQuery(relation, None, str(error)))
    return asked


def manual(lm: FrozenLM, asked: Sequence[RelationQuery]) -> list[Artefact]:
    """Return the artefact of each relation's manual template."""
    return [_written(lm, a.task, None) for a in asked if a.task is not None]


def best_paraphrase(lm: FrozenLM, asked: Sequence[RelationQuery]) -> list[Artefact]:
    """Return each relation's paraphrase with the best mean reciprocal rank on development rows.

    The manual template is one of the paraphrases, and is chosen if there are no such rows. All paraphrases of all
    relations share batches.
    """
    pairs: list[tuple[Artefact, Any]] = []
    owners: list[int] = []
    tasks = [a for a in asked if a.task is not None]
    for number, one in enumerate(tasks):
        assert one.task is not None, "filtered above"
        for pattern in (one.relation.template, *one.relation.paraphrases):
            if lm.kind in (found := templates_of(pattern)):
                pairs.append((_written(lm, one.task, found[lm.kind]), one.task.validation))
                owners.append(number)
    score = score_rows(lm, pairs)
    best: dict[int, tuple[float, Artefact]] = {}
    for owner, (artefact, rows), score_NC in zip(owners, pairs, score, strict=True):
        value = float((1.0 / _ranks(score_NC, rows)).mean()) if rows else 0.0
        if owner not in best or value > best[owner][0]:
            best[owner] = (value, artefact)
    return [best[number][1] for number in range(len(tasks))]


def majority_ranks(task: Task) -> NDArray[np.int64]:
    """Return the ranks under a constant answer: candidates by how often they are right in the training rows.

    Ties count against the right one. A prompt's gain over the relation's prior is its gain over these ranks.
    """
    counts_C = np.bincount([row.label or 0 for row in task.train], minlength=len(task.labels)).astype(np.float64)
    label_R = np.asarray([row.label for row in task.test])
    return ranks(np.broadcast_to(counts_C, (len(label_R), len(counts_C))), label_R)


def learnt(
    lm: FrozenLM, asked: Sequence[RelationQuery], method: str, options: Mapping[str, Any], seed: int,
    progress: Progress | None = None,
) -> dict[str, Artefact | str]:  # fmt: skip
    """Learn a prompt for every relation with training rows, in one process; for the others, return why there is none.

    Gradient methods train all prompts in one mixed stack.
    """
    able = [a for a in asked if a.task is not None and a.task.train]
    jobs = [make_job(lm, a.task, method, options=options, seed=seed) for a in able if a.task is not None]
    found: dict[str, Artefact | str] = {a.relation.name: a.reason or "no training rows" for a in asked}
    for one, outcome in zip(able, train_many(lm, jobs, progress=progress), strict=True):
        found[one.relation.name] = str(outcome) if isinstance(outcome, ForewordError) else outcome.artefact
    return found


def answer(
    lm: FrozenLM, asked: Sequence[RelationQuery], artefacts: Mapping[str, Artefact], arm: str, seed: int
) -> list[RelationRanks]:
    """Return the ranks on the test rows; the rows of all relations, each with its own prompt, share batches."""
    own = [a for a in asked if a.task is not None and a.relation.name in artefacts]
    pairs = [(artefacts[a.relation.name], a.task.test) for a in own if a.task is not None]
    score = score_rows(lm, pairs)
    return [
        RelationRanks(a.relation.name, arm, seed, artefact, _ranks(score_NC, rows))
        for a, (artefact, rows), score_NC in zip(own, pairs, score, strict=True)
    ]


def macro_interval(
    by_relation: Mapping[str, NDArray[np.int64]], seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Return each measure's mean over relations with its 95% interval over test rows, drawn anew in each relation.

    Ranks of several seeds on the same rows have the shape (seeds, rows); both seeds and rows are drawn.
    """
    rng = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {"p_at_1": [], "p_at_10": [], "mrr": []}
    for _ in range(DRAWS):
        found = [rank_metrics(_drawn(ranks, rng)) for ranks in by_relation.values()]
        for name, values in draws.items():
            values.append(float(np.mean([one[name] for one in found])))
    points = {n: float(np.mean([rank_metrics(r.reshape(-1))[n] for r in by_relation.values()])) for n in draws}
    bounds = {n: np.quantile(values, [0.025, 0.975]) for n, values in draws.items()}
    return {n: (points[n], float(bounds[n][0]), float(bounds[n][1])) for n in draws}


def _drawn(ranks: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    seeds, rows = np.atleast_2d(ranks).shape
    picked = np.atleast_2d(ranks)[rng.integers(0, seeds, seeds)]
    return picked[:, rng.integers(0, rows, rows)].reshape(-1)


def _written(lm: FrozenLM, task: Task, template: str | None) -> Artefact:
    """Return the artefact of a hand-written pattern (None: the relation's own template)."""
    job = make_job(lm, task, "manual")
    form = job.format if template is None else replace(job.format, template=Template.parse(template))
    return make_artefact(lm, replace(job, format=form), HardPrompt.empty(), form, 0)


def _ranks(score_NC: Any, rows: Sequence[Any]) -> NDArray[np.int64]:
    return ranks(score_NC.double().cpu().numpy(), np.asarray([row.label for row in rows]))
