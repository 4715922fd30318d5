"""Template search: words around the answer filled in by a language model, the best template chosen before anything is
trained (Gao et al. 2021, LM-BFF)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.core.format import Format
from foreword.core.prompts import HardPrompt
from foreword.core.template import Template
from foreword.errors import ConfigError
from foreword.methods.base import HardConfig, Job, Progress, SearchMethod
from foreword.methods.options import Count
from foreword.methods.search.answers import answer_of
from foreword.methods.search.arms import NONE, Pool, Reader, Score
from foreword.methods.search.choose import identity
from foreword.methods.search.infill import Filling, Infiller, shapes
from foreword.methods.search.ledger import Ledger
from foreword.methods.search.rounds import candidates, described, exhaustive, search
from foreword.methods.search.split import search_rows
from foreword.methods.search.turns import fill_turn, places, turn_of, with_content
from foreword.models.base import FrozenLM
from foreword.models.load import load
from foreword.tasks.rows import Row


@dataclass(frozen=True)
class TemplateSearchConfig(HardConfig):
    """`proposer` is self, or the name or folder of another model that fills the gaps (a masked one sees both sides).

    Gaps of up to `longest` pieces are filled by beam search over `examples` rows at once; the likeliest `candidates`
    templates, spread over the shapes, go into the search. In a chat the gap is at the end of the user's turn. `budget`,
    `score`, `selection_rows` and `exhaustive` are as in ape. The rows of the proposals are not those of the choice.
    """

    proposer: str = "self"
    candidates: Count = 60
    longest: Count = 4
    beam: Count = 12
    examples: Count = 16
    budget: Count = 2000
    score: Score = "likelihood"
    selection_rows: Count = 200
    exhaustive: bool = False


class TemplateSearch(SearchMethod):
    name = "template-search"
    summary = "words around the answer filled in by a model, ranked by likelihood"
    source = "Gao et al. 2021"
    Config = TemplateSearchConfig
    form = "hard"
    learns = False
    answers = ("labels", "options", "text")

    def search(
        self, lm: FrozenLM, job: Job, ledger: Ledger, progress: Progress | None
    ) -> tuple[HardPrompt, Format, int, dict[str, Any]]:
        config: TemplateSearchConfig = job.config
        if job.format.template.slots:
            raise ConfigError("A search for words needs a template without {soft:...} slots; remove them.")
        rows = search_rows(job.task, job.seed, config.examples, config.selection_rows)
        pool = Pool(lm, lambda text: _with(job.format, text))
        pool.add_as_written()
        for source in self._fillings(lm, job, rows.proposal, ledger):
            pool.add(source, "infilled")
        reader = Reader(lm, job.task, rows.selection, config.score, ledger)
        reader.told(job.name, config.budget, progress)
        outcome = search(
            pool, len(rows.selection), config.budget, lambda cells: reader.values(pool.arms, cells), block=rows.block
        )
        told: dict[str, Any] = {
            "search": described(pool, reader, rows, outcome, config.score, config.budget),
            "search_rows": rows.hashes(job.task),
        }
        if config.exhaustive:
            told["exhaustive"] = exhaustive(pool, reader, len(rows.selection), outcome)
        told["candidates"] = candidates(pool, outcome)
        return NONE, pool.arms[outcome.winner].format, 0, told

    def _fillings(self, lm: FrozenLM, job: Job, rows: Sequence[Row], ledger: Ledger) -> list[str]:
        """The likeliest fillings, shape by shape in turn: sources of a template, or of a chat's last user turn."""
        config: TemplateSearchConfig = job.config
        proposer = lm if config.proposer == "self" else load(config.proposer)
        chat = job.format.template.chat
        if chat and proposer.instructed:
            texts, who = [dict(row.fields) for row in rows], identity(proposer)
            forms = [dataclasses.replace(job.format, template=template) for template in places(job.format.template)]
            ranked = [
                fill_turn(proposer, form, texts, length, config.beam, ledger, who)
                for length in range(1, config.longest + 1)
                for form in forms
            ]
        else:
            examples = [(dict(row.fields), answer_of(job.format, row)) for row in rows]
            infiller = Infiller(proposer, examples, config.beam, ledger, identity(proposer))
            filled = [infiller.fill(shape) for shape in _shapes(job, lm, proposer, config.longest)]
            ranked = [[turn_of(f) if chat else _source(f, lm.kind) for f in some] for some in filled]
        found: list[str] = []
        for turn in range(config.beam):
            found += [some[turn] for some in ranked if turn < len(some)]
        return found[: config.candidates]


def _shapes(job: Job, lm: FrozenLM, proposer: FrozenLM, longest: int) -> list[Any]:
    """Shapes that the model can read and the proposer can fill: a causal proposer sees nothing behind a gap."""
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
