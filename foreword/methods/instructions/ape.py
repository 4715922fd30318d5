"""Propose instructions from demonstrations, and choose one under a budget of evaluations (APE, Zhou et al. 2022)."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from foreword.core.doc import Doc, documented
from foreword.errors import ConfigError
from foreword.inference.calibration import HardConfig
from foreword.methods.instructions import proposal_prompts
from foreword.methods.instructions.candidates import NONE, CandidatePool, CandidateScorer, answer_of, with_instruction
from foreword.methods.instructions.instruction_file import given_instructions
from foreword.methods.instructions.proposers import Filler, ProposalSampling, Proposer, check_proposer, proposing
from foreword.methods.instructions.remote import BudgetSpentError
from foreword.methods.instructions.rounds import Ranked, candidates, described, exhaustive, search
from foreword.methods.instructions.search_rows import search_rows
from foreword.models.base import FrozenLM
from foreword.tasks.rows import Row
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Count, Positive, Share, Whole

TOGETHER = 5  # texts that one prompt asks for


@documented
@dataclass(frozen=True)
class ApeConfig(HardConfig):
    """Hold the options of APE.

    A causal proposer continues a prompt with demonstrations. A masked one fills gaps and redraws words of the seed
    instructions. The rows of proposals and of the choice are training rows, apart. A remote proposer speaks the
    protocol of OpenAI.
    """

    proposer: Annotated[
        str, Doc("Who proposes instructions: self (the model), remote, or the name or folder of another model.")
    ] = "self"
    mode: Annotated[
        Literal["auto", "forward", "insert"],
        Doc("How proposals are asked for: a text after the demonstrations (forward), or between two texts (insert)."),
    ] = "auto"
    candidates: Annotated[Count, Doc("Instructions that are proposed first.")] = 40
    examples: Annotated[Count, Doc("Training rows that one proposal is shown.")] = 5
    rounds: Annotated[Whole, Doc("Rounds of more proposals around the best candidates.")] = 1
    resampled: Annotated[Count, Doc("Instructions that each round proposes.")] = 15
    keep: Annotated[Count, Doc("Best candidates that a round varies.")] = 4
    resample: Annotated[
        Literal["variation", "history"],
        Doc("What a round asks for: other wordings, or better ones than a history shows (Yang et al. 2023)."),
    ] = "variation"
    budget: Annotated[Count, Doc("Evaluations of one candidate on one row, in all rounds together.")] = 2000
    score: Annotated[
        Literal["likelihood", "metric"],
        Doc("What a candidate is worth: the log-likelihood of the right answer, or the task's metric."),
    ] = "likelihood"
    proposal_rows: Annotated[Count, Doc("Training rows that proposals may show.")] = 100
    selection_rows: Annotated[Count, Doc("Training rows on which candidates are compared.")] = 200
    seeds: Annotated[bool, Doc("Add hand-written seed instructions.")] = True
    instructions: Annotated[
        str | None, Doc("File of further candidates: one on each line, or a tasks.json with gold instructions.")
    ] = None
    frame: Annotated[
        Literal["template", "paper"],
        Doc("How a row is put: in the task's template, or as the paper's Instruction, Input and Output."),
    ] = "template"
    proposal_temperature: Annotated[Positive, Doc("Sampling temperature of proposals.")] = 0.9
    proposal_top_p: Annotated[Share, Doc("Share of the probability from which proposals are sampled.")] = 0.9
    proposal_tokens: Annotated[Count, Doc("Most tokens of a proposal.")] = 50
    exhaustive: Annotated[
        bool,
        Doc("Also read every candidate on every selection row, outside of the budget, to report the rank correlation."),
    ] = False
    url: Annotated[str | None, Doc("Address of the remote proposer.")] = None
    remote_model: Annotated[str | None, Doc("Name of the remote model.")] = None
    key_variable: Annotated[str, Doc("Environment variable that holds the key of the remote proposer.")] = (
        "OPENAI_API_KEY"
    )
    allow_remote: Annotated[bool, Doc("Let training rows leave this machine for the remote proposer.")] = False
    token_budget: Annotated[Whole, Doc("Most tokens that all remote calls together may use.")] = 100_000

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
        sampling = ProposalSampling(config.proposal_temperature, config.proposal_top_p, config.proposal_tokens)
        proposer = proposing(lm, config, sampling, state)
        pool = CandidatePool(lm, lambda text: with_instruction(job.format, text, lm.kind, config.frame))
        pool.add_as_written()
        for text in given_instructions(config.instructions, job.task.name):
            pool.add(text, "given")
        maker = _Maker(job, rows.proposal, proposer, pool)
        maker.first()
        reader = CandidateScorer(lm, job.task, rows.selection, config.score, state)
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
        metrics: dict[str, Any] = {"search": record, "search_rows": rows.hashes(job.task)}
        if config.exhaustive:
            metrics["exhaustive"] = exhaustive(pool, reader, len(rows.selection), outcome)
        metrics["candidates"] = candidates(pool, outcome)
        return Made(NONE, pool.arms[outcome.winner].format, metrics=metrics)


class _Maker:
    """Put proposals into the pool of candidates."""

    def __init__(self, job: Job, rows: Sequence[Row], proposer: Proposer | Filler | None, pool: CandidatePool) -> None:
        self._job, self._rows, self._proposer, self._pool = job, rows, proposer, pool
        self._config: ApeConfig = job.config
        self._rng = random.Random(f"ape {job.seed}")
        self._seed = self._rng.randrange(2**31)
        self._spent = False
        self._answers_shown = {answer_of(job.format, row).lower().rstrip(".") for row in rows}

    def first(self) -> None:
        """Add seed instructions, then proposals from demonstrations."""
        if self._config.seeds:
            for text in proposal_prompts.seeds(self._job.format):
                self._pool.add(text, "seed")
        self._collect(self._config.candidates, self._proposed)

    def around(self, best: Ranked) -> None:
        """Add new candidates around the best."""
        if self._config.resample == "history" and isinstance(self._proposer, Proposer):
            scored = sorted(((arm.text, _shown(self._config.score, mean)) for arm, mean in best if arm.text),
                            key=lambda pair: pair[1])  # fmt: skip
            self._collect(self._config.resampled, lambda: self._from_history(scored))
            return
        texts = [arm.text for arm, _ in best if arm.text] or [arm.text for arm in self._pool.arms if arm.text]
        self._collect(
            self._config.resampled, lambda: self._varied(self._rng.choice(texts)) if texts else _Request("none")
        )

    def _collect(self, wanted: int, ask: "Callable[[], _Request]") -> None:
        """Ask until `wanted` new candidates are there, at most three times as often as needed if all were new."""
        got, left = 0, 3 * math.ceil(wanted / TOGETHER)
        while got < wanted and left and not self._spent:
            # A writer is asked for all that is still missing at once; what a filler is asked hangs on the pool.
            turn = min(left, math.ceil((wanted - got) / TOGETHER)) if isinstance(self._proposer, Proposer) else 1
            left -= turn
            requests = [ask() for _ in range(turn)]
            for request, texts in zip(requests, self._answers(requests), strict=False):
                for text in texts:
                    instruction = proposal_prompts.instruction_of(text, self._rows)
                    if instruction and instruction.lower().rstrip(".") not in self._answers_shown and got < wanted:
                        got += self._pool.add(instruction, request.source)

    def _answers(self, requests: "Sequence[_Request]") -> Iterator[Sequence[str]]:
        """Yield the texts of each request, as far as the tokens of a remote model's budget go."""
        prompts = [(request.prompt, request.seed) for request in requests if request.prompt is not None]
        written = self._proposer.write(prompts, TOGETHER) if isinstance(self._proposer, Proposer) else iter(())
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
        if isinstance(self._proposer, Proposer):
            prompt = proposal_prompts.variation(text)
            if self._proposer.fits(prompt):
                return self._request(prompt, "variation")
        if isinstance(self._proposer, Filler) and self._rng.random() < 0.75:
            return _Request("resampled", texts=self._proposer.resample(text, TOGETHER, self._next_seed()))
        return _Request("edited", texts=[proposal_prompts.edited(text, self._rng) for _ in range(TOGETHER)])

    def _from_history(self, scored: Sequence[tuple[str, float]]) -> "_Request":
        assert isinstance(self._proposer, Proposer), "only writers can be shown a history"
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
    """Hold proposed texts, or the prompt that asks a writer for them, and where they come from."""

    source: str
    prompt: str | None = None
    seed: int = 0
    texts: Sequence[str] = ()


def _shown(score: str, mean: float) -> float:
    """Return a score between 0 and 1: a metric as it is, a mean log-likelihood as a probability."""
    return mean if score == "metric" else math.exp(min(0.0, mean))
