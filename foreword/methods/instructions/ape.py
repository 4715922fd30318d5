"""APE: instructions proposed from demonstrations, chosen under a budget of evaluations (Zhou et al. 2022)."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreword.errors import ConfigError
from foreword.inference.calibration import HardConfig
from foreword.methods.instructions import proposal_prompts
from foreword.methods.instructions.candidates import NONE, Pool, Reader, answer_of, with_instruction
from foreword.methods.instructions.instruction_file import given_instructions
from foreword.methods.instructions.proposers import Filler, Sampling, Writer, check_proposer, proposing
from foreword.methods.instructions.remote import BudgetSpentError
from foreword.methods.instructions.rounds import Ranked, candidates, described, exhaustive, search
from foreword.methods.instructions.search_rows import search_rows
from foreword.models.base import FrozenLM
from foreword.tasks.rows import Row
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Count, Positive, Share, Whole

TOGETHER = 5  # texts asked for with one prompt


@dataclass(frozen=True)
class ApeConfig(HardConfig):
    """`proposer` is self (the model itself), remote, or another model's name or folder; masked models fill gaps and
    redraw words of seed instructions. `candidates` are proposed from `examples` rows at a time; then `rounds`
    times `resampled` more around the best `keep`: other wordings, or (`resample=history`) with past scores shown (Yang
    et al. 2023).

    `budget` counts evaluations of one candidate on one row, all rounds together. `score` is the right answer's
    log-likelihood or the task's metric. `proposal_rows` and `selection_rows` are taken from the training rows, apart.
    `instructions` names a file of more candidates, one a line, or a tasks.json with gold instructions.
    `frame=paper` puts rows as "Instruction: ... Input: ... Output:" instead of into the task's own template.
    `exhaustive` reads every candidate on every selection row as well, outside of the budget, for the rank correlation.

    A remote proposer is an OpenAI-compatible `url` with `remote_model`, its key in the environment variable
    `key_variable`; it is asked only with `allow_remote`, for at most `token_budget` tokens.
    """

    proposer: str = "self"
    mode: Literal["auto", "forward", "insert"] = "auto"
    candidates: Count = 40
    examples: Count = 5
    rounds: Whole = 1
    resampled: Count = 15
    keep: Count = 4
    resample: Literal["variation", "history"] = "variation"
    budget: Count = 2000
    score: Literal["likelihood", "metric"] = "likelihood"
    proposal_rows: Count = 100
    selection_rows: Count = 200
    seeds: bool = True
    instructions: str | None = None
    frame: Literal["template", "paper"] = "template"
    proposal_temperature: Positive = 0.9
    proposal_top_p: Share = 0.9
    proposal_tokens: Count = 50
    exhaustive: bool = False
    url: str | None = None
    remote_model: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    allow_remote: bool = False
    token_budget: Whole = 100_000

    def __post_init__(self) -> None:
        check_proposer(self)


class Ape(DirectMethod):
    name = "ape"
    summary = "instructions proposed by a model, the best chosen under a budget"
    source = "Zhou et al. 2022"
    Config = ApeConfig
    form = "hard"
    resumes = True
    mixed_batch = False
    freezes_lm = True
    learns = False
    answers = ("labels", "options", "text")

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        config: ApeConfig = job.config
        rows = search_rows(job.task, job.seed, config.proposal_rows, config.selection_rows)
        how = Sampling(config.proposal_temperature, config.proposal_top_p, config.proposal_tokens)
        proposer = proposing(lm, config, how, state)
        pool = Pool(lm, lambda text: with_instruction(job.format, text, lm.kind, config.frame))
        pool.add_as_written()
        for text in given_instructions(config.instructions, job.task.name):
            pool.add(text, "given")
        maker = _Maker(job, rows.proposal, proposer, pool)
        maker.first()
        reader = Reader(lm, job.task, rows.selection, config.score, state)
        reader.report_up_to(config.budget)
        outcome = search(
            pool,
            len(rows.selection),
            config.budget,
            lambda cells: reader.values(pool.arms, cells),
            rounds=config.rounds if proposer is not None else 0,
            keep=config.keep,
            block=rows.block,
            resample=maker.around,
        )
        record = described(pool, reader, rows, outcome, config.score, config.budget)
        record["remote_tokens"] = state.spent
        told: dict[str, Any] = {"search": record, "search_rows": rows.hashes(job.task)}
        if config.exhaustive:
            told["exhaustive"] = exhaustive(pool, reader, len(rows.selection), outcome)
        told["candidates"] = candidates(pool, outcome)
        return Made(NONE, pool.arms[outcome.winner].format, metrics=told)


class _Maker:
    """Puts proposals into the pool."""

    def __init__(self, job: Job, rows: Sequence[Row], proposer: Writer | Filler | None, pool: Pool) -> None:
        self._job, self._rows, self._proposer, self._pool = job, rows, proposer, pool
        self._config: ApeConfig = job.config
        self._rng = random.Random(f"ape {job.seed}")
        self._seed = self._rng.randrange(2**31)
        self._spent = False
        self._answers_shown = {answer_of(job.format, row).lower().rstrip(".") for row in rows}

    def first(self) -> None:
        """Seed instructions, then proposals from demonstrations."""
        if self._config.seeds:
            for text in proposal_prompts.seeds(self._job.format):
                self._pool.add(text, "seed")
        self._collect(self._config.candidates, self._proposed)

    def around(self, best: Ranked) -> None:
        """New candidates around the best."""
        if self._config.resample == "history" and isinstance(self._proposer, Writer):
            scored = sorted(((arm.text, _shown(self._config.score, mean)) for arm, mean in best if arm.text),
                            key=lambda pair: pair[1])  # fmt: skip
            self._collect(self._config.resampled, lambda: self._from_history(scored))
            return
        texts = [arm.text for arm, _ in best if arm.text] or [arm.text for arm in self._pool.arms if arm.text]
        self._collect(
            self._config.resampled, lambda: self._varied(self._rng.choice(texts)) if texts else _Request("none")
        )

    def _collect(self, wanted: int, ask: "Callable[[], _Request]") -> None:
        """Ask until so many new candidates are there, three times as often as would be needed if all were new."""
        got, left = 0, 3 * math.ceil(wanted / TOGETHER)
        while got < wanted and left and not self._spent:
            # A writer is asked for all that is still missing at once; what a filler is asked hangs on the pool.
            turn = min(left, math.ceil((wanted - got) / TOGETHER)) if isinstance(self._proposer, Writer) else 1
            left -= turn
            requests = [ask() for _ in range(turn)]
            for request, texts in zip(requests, self._answers(requests), strict=False):
                for text in texts:
                    made = proposal_prompts.instruction_of(text, self._rows)
                    if made and made.lower().rstrip(".") not in self._answers_shown and got < wanted:
                        got += self._pool.add(made, request.source)

    def _answers(self, requests: "Sequence[_Request]") -> Iterator[Sequence[str]]:
        """The texts of each request, as far as the tokens of a remote model go."""
        asked = [(request.prompt, request.seed) for request in requests if request.prompt is not None]
        written = self._proposer.write(asked, TOGETHER) if isinstance(self._proposer, Writer) else iter(())
        try:
            for request in requests:
                yield request.texts if request.prompt is None else next(written)
        except BudgetSpentError:  # the tokens are used up: go on with what there is
            self._spent = True

    def _request(self, prompt: str, source: str) -> "_Request":
        return _Request(source, prompt, self._next_seed())

    def _next_seed(self) -> int:
        self._seed += TOGETHER  # remote texts of one prompt have seeds of their own
        return self._seed

    def _examples(self, most: int) -> list[str]:
        chosen = self._rng.sample(range(len(self._rows)), min(most, len(self._rows)))
        return [proposal_prompts.shown(self._rows[i], answer_of(self._job.format, self._rows[i])) for i in chosen]

    def _proposed(self) -> "_Request":
        examples = self._examples(self._config.examples)
        proposer, mode = self._proposer, self._config.mode
        if isinstance(proposer, Filler):
            if mode != "insert" and self._rng.random() < 0.7:
                return self._varied(self._rng.choice([a.text for a in self._pool.arms if a.text] or ["Answer."]))
            before, after = proposal_prompts.insert(examples)
            length = self._rng.randrange(3, 10)
            return _Request("insert", texts=proposer.insert(before, after, length, TOGETHER, self._next_seed()))
        if proposer is None:
            return _Request("none")
        make = proposal_prompts.insert_asked if mode == "insert" else proposal_prompts.forward
        while len(examples) > 1 and not proposer.fits(make(examples)):
            examples.pop()
        if not proposer.fits(make(examples)):
            return _Request("none")
        return self._request(make(examples), "insert" if mode == "insert" else "forward")

    def _varied(self, text: str) -> "_Request":
        if isinstance(self._proposer, Writer):
            prompt = proposal_prompts.variation(text)
            if self._proposer.fits(prompt):
                return self._request(prompt, "variation")
        if isinstance(self._proposer, Filler) and self._rng.random() < 0.75:
            return _Request("resampled", texts=self._proposer.resample(text, TOGETHER, self._next_seed()))
        return _Request("edited", texts=[proposal_prompts.edited(text, self._rng) for _ in range(TOGETHER)])

    def _from_history(self, scored: Sequence[tuple[str, float]]) -> "_Request":
        assert isinstance(self._proposer, Writer), "only writers can be shown a history"
        examples, shown = self._examples(min(3, self._config.examples)), list(scored)
        while len(shown) > 1 and not self._proposer.fits(proposal_prompts.history(shown, examples)):
            shown.pop(0)
        prompt = proposal_prompts.history(shown, examples)
        if not self._proposer.fits(prompt):
            raise ConfigError("resample=history: the past instructions and one example do not fit the proposer's "
                              "context; use resample=variation.")  # fmt: skip
        return self._request(prompt, "history")


@dataclass(frozen=True)
class _Request:
    """Texts that were proposed, or the prompt that a writer is asked for them with, and where they are from."""

    source: str
    prompt: str | None = None
    seed: int = 0
    texts: Sequence[str] = ()


def _shown(score: str, mean: float) -> float:
    """A score between 0 and 1: a metric as it is, a mean log-likelihood as the probability it stands for."""
    return mean if score == "metric" else math.exp(min(0.0, mean))
