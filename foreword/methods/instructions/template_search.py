"""Fill in words around the answer with a language model, and choose the best template (LM-BFF, Gao et al. 2021)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from foreword.core.doc import Doc, documented
from foreword.core.format import Format
from foreword.core.template import Template
from foreword.errors import ConfigError
from foreword.inference.calibration import HardConfig
from foreword.methods.instructions.candidates import NONE, CandidatePool, CandidateScorer, Score, answer_of
from foreword.methods.instructions.chat_turns import fill_turn, places, turn_of, with_content
from foreword.methods.instructions.infill import Filling, Infiller, shapes
from foreword.methods.instructions.proposers import identity
from foreword.methods.instructions.rounds import candidates, described, exhaustive, search
from foreword.methods.instructions.search_rows import search_rows
from foreword.models.base import FrozenLM
from foreword.models.load import load
from foreword.tasks.rows import Row
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Count


@documented
@dataclass(frozen=True)
class TemplateSearchConfig(HardConfig):
    """Hold the options of the search for templates.

    The likeliest fillings are spread over the shapes of a template. In a chat, the gap is at the end of the user's
    turn. The rows of the proposals are not those of the choice.
    """

    proposer: Annotated[
        str,
        Doc("Model that fills the gaps: self, or the name or folder of another one (a masked one sees both sides)."),
    ] = "self"
    candidates: Annotated[Count, Doc("Likeliest templates that are compared.")] = 60
    longest: Annotated[Count, Doc("Most tokens in a gap.")] = 4
    beam: Annotated[Count, Doc("Width of the beam search that fills a gap.")] = 12
    examples: Annotated[Count, Doc("Training rows that a gap is filled for at once.")] = 16
    budget: Annotated[Count, Doc("Evaluations of one template on one row, in all.")] = 2000
    score: Annotated[
        Score, Doc("What a template is worth: the log-likelihood of the right answer, or the task's metric.")
    ] = "likelihood"
    selection_rows: Annotated[Count, Doc("Training rows on which templates are compared.")] = 200
    exhaustive: Annotated[
        bool,
        Doc("Also read every template on every selection row, outside of the budget, to report the rank correlation."),
    ] = False


class TemplateSearch(DirectMethod):
    name = "template-search"
    summary = "words around the answer filled in by a model, ranked by likelihood"
    source = "Gao et al. 2021"
    Config = TemplateSearchConfig
    form = "hard"
    resumes = True
    mixed_batch = False
    freezes_lm = True
    learns = False
    answers = ("labels", "options", "text")

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        config: TemplateSearchConfig = job.config
        if job.format.template.slots:
            raise ConfigError("A search for words needs a template without {soft:...} slots; remove them.")
        rows = search_rows(job.task, job.seed, config.examples, config.selection_rows)
        pool = CandidatePool(lm, lambda text: _with(job.format, text))
        pool.add_as_written()
        for source in self._fillings(lm, job, rows.proposal, state):
            pool.add(source, "infilled")
        reader = CandidateScorer(lm, job.task, rows.selection, config.score, state)
        reader.report_up_to(config.budget)
        outcome = search(
            pool, len(rows.selection), config.budget, lambda cells: reader.values(pool.arms, cells), block=rows.block
        )
        metrics: dict[str, Any] = {
            "search": described(pool, reader, rows, outcome, config.score, config.budget),
            "search_rows": rows.hashes(job.task),
        }
        if config.exhaustive:
            metrics["exhaustive"] = exhaustive(pool, reader, len(rows.selection), outcome)
        metrics["candidates"] = candidates(pool, outcome)
        return Made(NONE, pool.arms[outcome.winner].format, metrics=metrics)

    def _fillings(self, lm: FrozenLM, job: Job, rows: Sequence[Row], state: SearchState) -> list[str]:
        """Return the likeliest fillings, one shape after the other: templates, or last user turns of a chat."""
        config: TemplateSearchConfig = job.config
        proposer = lm if config.proposer == "self" else load(config.proposer)
        chat = job.format.template.chat
        if chat and proposer.instructed:
            texts, who = [dict(row.fields) for row in rows], identity(proposer)
            forms = [dataclasses.replace(job.format, template=template) for template in places(job.format.template)]
            ranked = [
                fill_turn(proposer, form, texts, length, config.beam, state, who)
                for length in range(1, config.longest + 1)
                for form in forms
            ]
        else:
            examples = [(dict(row.fields), answer_of(job.format, row)) for row in rows]
            infiller = Infiller(proposer, examples, config.beam, state, identity(proposer))
            filled = [infiller.fill(shape) for shape in _shapes(job, lm, proposer, config.longest)]
            ranked = [[turn_of(f) if chat else _source(f, lm.kind) for f in fillings] for fillings in filled]
        chosen: list[str] = []
        for turn in range(config.beam):
            chosen += [fillings[turn] for fillings in ranked if turn < len(fillings)]
        return chosen[: config.candidates]


def _shapes(job: Job, lm: FrozenLM, proposer: FrozenLM, longest: int) -> list[Any]:
    """Return shapes that the model can read and the proposer can fill; a causal one sees nothing behind a gap."""
    kind = "causal" if "causal" in (lm.kind, proposer.kind) else "masked"
    return shapes(tuple(job.task.fields), kind, longest)


def _source(filling: Filling, kind: str) -> str:
    source = filling.template(kind).source
    assert isinstance(source, str), "fillings are one string"
    return source


def _with(form: Format, source: str) -> Format:
    if not source:
        return form
    template = with_content(form.template, source) if form.template.chat else Template.parse(source)
    return dataclasses.replace(form, template=template)
