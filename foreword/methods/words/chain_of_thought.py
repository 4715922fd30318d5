"""Let the model write its reasoning first, then find the answer in it or score label words after it.

Wei et al. 2022 (demonstrations with reasoning), Kojima et al. 2022 (an instruction alone, and the answer scored in a
second stage), Wang et al. 2022 (several samples that vote). Nothing is trained.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from foreword.core.doc import Doc, documented
from foreword.core.format import Decoding, Extract, Format
from foreword.core.prompts import HardPrompt
from foreword.core.template import AnswerPlace, Part, Soft, Template, Turn, filled, joined, literal
from foreword.core.template import Literal as Words
from foreword.errors import ConfigError, DataError
from foreword.inference.answers import choices_of
from foreword.inference.calibration_reasoned import calibrate_reasoned
from foreword.inference.generation import encode_to_write, written_form
from foreword.models.base import FrozenLM
from foreword.models.encoding.encoder import Encoder
from foreword.tasks.extract import MARKER, numbers
from foreword.tasks.formats import CAP, token_counts
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from foreword.training.contract import DirectMethod, Job, Made, SearchState
from foreword.training.options import Count, Positive, Share, Whole

BETWEEN = "\n\n"  # two demonstrations
REASONED, LEAST = 512, 128  # tokens of reasoning, and of it in a short context


@documented
@dataclass(frozen=True)
class ChainOfThoughtConfig:
    """Hold the options of chain of thought. A text that is cut off before its answer has no answer."""

    instruction: Annotated[str, Doc("Text that every answer begins with.")] = "Let's think step by step."
    demonstrations: Annotated[
        Whole, Doc("Training rows with reasoning that are shown before the row, drawn with the seed.")
    ] = 0
    extract: Annotated[
        Literal["auto", "number", "choice", "span", "score"],
        Doc("What is looked for in the text; auto follows the task, and score scores the label words after it."),
    ] = "auto"
    conclude: Annotated[str, Doc("Text that leads from the reasoning to the answer.")] = "The answer is"
    samples: Annotated[Count, Doc("Texts that are sampled for each row; above 1, they vote.")] = 1
    vote: Annotated[
        Literal["majority", "likelihood"], Doc("What a sample's vote counts: one (majority), or its likelihood.")
    ] = "majority"
    early_stop: Annotated[
        bool, Doc("Sample no more texts of a row once the leading answer can no longer be beaten.")
    ] = True
    temperature: Annotated[Positive, Doc("Temperature of the samples.")] = 0.7
    top_p: Annotated[Share, Doc("Share of the probability from which samples are drawn.")] = 1.0
    top_k: Annotated[Whole, Doc("Likeliest tokens from which samples are drawn (0: all).")] = 0
    max_new_tokens: Annotated[
        Count | None,
        Doc("Most tokens of the reasoning (none: what training rows need, 512 or more if there is room)."),
    ] = None
    calibrate: Annotated[
        Literal["none", "contextual", "batch", "auto"],
        Doc("How the label scores of extract=score are corrected; auto chooses on the validation rows."),
    ] = "none"
    content_free: Annotated[str, Doc("Texts without content for the rule contextual, separated by |.")] = "N/A||[MASK]"


class ChainOfThought(DirectMethod):
    name = "chain-of-thought"
    summary = "reasoning before the answer, by an instruction or demonstrations; samples may vote"
    source = "Wei et al. 2022; Kojima et al. 2022; Wang et al. 2022"
    Config = ChainOfThoughtConfig
    form = "hard"
    mixed_batch = True
    freezes_lm = True
    kinds = ("causal",)
    answers = ("labels", "options", "text")
    learns = False

    def make(self, lm: FrozenLM, job: Job, state: SearchState) -> Made:
        config: ChainOfThoughtConfig = job.config
        extract = _extract(config, job.task)
        if job.format.template.slots:
            raise ConfigError(
                "chain-of-thought uses words only, and this template has {soft:...} slots; remove them, or use "
                "prompt-tuning."
            )
        if extract is not None and not MARKER.search(config.conclude + " "):
            raise ConfigError(
                f"chain-of-thought: conclude={config.conclude!r} is not found again in what is written; give words "
                'that end with "answer is", "answer:" or "####", or extract=score.'
            )
        shown = _demonstrations(job, config)
        template = reasoning_template(job.format, shown, config.instruction, config.conclude)
        several = config.samples > 1
        # What was said of decoding holds for reasoning too, but where an answer in text ends.
        task_decoding = job.format.decoding or Decoding()
        drawn = {n: getattr(config, n) for n in ("temperature", "top_p", "top_k")} if several else {}
        stops = (
            *_stops(job.format.template, bool(shown)),
            *(stop for stop in task_decoding.stop_strings if stop != "\n"),
        )
        plain = replace(
            job.format, template=template, decoding=replace(task_decoding, max_new_tokens=1, min_new_tokens=0)
        )
        decoding = replace(
            task_decoding,
            max_new_tokens=config.max_new_tokens or reasoning_limit(lm, plain, job.task, config.conclude),
            do_sample=several or task_decoding.do_sample,
            **drawn,
            stop_strings=tuple(dict.fromkeys(stops)),
            extract=extract,
            num_return_sequences=config.samples,
            vote=config.vote,
            seed=job.seed if several else 0,
            early_stop=config.early_stop,
            conclude=config.conclude if extract is None else None,
        )
        form = replace(job.format, template=template, decoding=decoding)
        encode_to_write(lm, form, [])  # that there is room is told now
        value = HardPrompt.empty()
        form, notes = calibrate_reasoned(lm, job.task, value, form, config.calibrate, config.content_free)
        return Made(value, form, metrics=notes)


def reasoning_limit(lm: FrozenLM, form: Format, task: Task, conclude: str) -> int:
    """Return how many tokens reasoning may have: half more than that of training and validation rows, `REASONED` at
    least and `CAP` at most, and half of what the template leaves of the model's positions, or `LEAST`.
    """
    rows = [row for row in (*task.train, *task.validation) if row.reasoning]
    shown = [f"{row.reasoning} {conclude} {row.targets[0] if row.targets else ''}" for row in rows]
    wanted = min(CAP, max([REASONED, *(3 * count // 2 for count in token_counts(lm, shown))]))
    encoder = Encoder.build(lm, written_form(form))
    return min(wanted, max((encoder.room - encoder.own) // 2, LEAST))


def reasoning_template(form: Format, shown: Sequence[Row], instruction: str, conclude: str) -> Template:
    """Return the template with solved rows before it (turns, in a chat) and the instruction where the answer begins."""
    template = form.template.for_kind("causal")
    if template.chat:
        first = [t for t in template.turns if t.role == "system"]
        others = [t for t in template.turns if t.role != "system"]
        end = (Words(f"\n{instruction}"),) if instruction else ()
        others[-1] = Turn(others[-1].role, (*others[-1].parts, *end))
        turns = list(first)
        for row in shown:
            turns += [Turn(t.role, joined(_filled(t.parts, row))) for t in others]
            turns.append(Turn("assistant", joined(_solved(form, row, conclude))))
        return Template((*turns, *others))
    before = [part for part in template.turns[0].parts if not isinstance(part, AnswerPlace)]
    if instruction:
        last = before[-1] if before else None
        spaced = not isinstance(last, Words) or not last.text[-1:].isspace()
        before.append(Words(f" {instruction}" if spaced else instruction))
    solved: list[Part] = []
    for row in shown:
        solved += [*_stripped(_filled(before, row)), Words(" "), *_solved(form, row, conclude), Words(BETWEEN)]
    return Template((Turn("", joined([*solved, *before, AnswerPlace()])),))


def _filled(parts: Sequence[Part], row: Row) -> list[Part]:
    """Return the parts with a row's texts, in which no token is a special one."""
    assert not any(isinstance(part, Soft) for part in parts), "there are words only"
    return [part for part in filled(parts, row.fields) if isinstance(part, Words)]


def _stripped(parts: Sequence[Part]) -> list[Part]:
    """Return the parts without the spaces at their end."""
    *before, last = parts
    assert isinstance(last, Words), "filled parts are texts"
    text = last.text.rstrip()
    return [*before, replace(last, text=text)] if text else _stripped(before) if before else []


def _solved(form: Format, row: Row, conclude: str) -> list[Part]:
    """Return a row's reasoning and its answer."""
    if row.targets:
        answer = row.targets[0]
    else:
        assert row.label is not None, "rows without an answer are no demonstrations"
        answer = choices_of(form, row)[row.label][0]
    own = bool(row.targets or row.options)  # label words are the format's
    return [Words(row.reasoning, data=True), Words(f" {conclude} "), literal(answer, own), Words(".")]


def _demonstrations(job: Job, config: ChainOfThoughtConfig) -> list[Row]:
    """Draw training rows with reasoning whose texts are in no other split."""
    if not config.demonstrations:
        return []
    elsewhere = {row.text() for row in (*job.task.validation, *job.task.test)}
    pool = list({row.text(): row for row in job.task.train if row.reasoning and row.text() not in elsewhere}.values())
    if len(pool) < config.demonstrations:
        raise DataError(
            f"chain-of-thought: {config.demonstrations} demonstrations need as many training rows with reasoning, and "
            f"{job.task.name} has {len(pool)}; give such rows a column called reasoning, or ask for fewer."
        )
    return random.Random(f"demonstrations {job.seed}").sample(pool, config.demonstrations)


def _extract(config: ChainOfThoughtConfig, task: Task) -> Extract | None:
    """Return what is looked for in the text; None if label words are scored."""
    choosing = task.answers != "text"
    if config.extract == "auto":
        if choosing:
            return "choice"
        targets = [row.targets[0] for row in (task.train or task.test) if row.targets]
        return "number" if task.metric == "number" or all(_is_number(target) for target in targets) else "span"
    if (config.extract in ("choice", "score")) != choosing:
        fits = "auto, choice or score" if choosing else "auto, number or span"
        what = "labels or options" if choosing else "texts"
        raise ConfigError(
            f"chain-of-thought: extract={config.extract} does not fit {task.name}, whose answers are {what}; "
            f"give {fits}."
        )
    return None if config.extract == "score" else config.extract


def _is_number(text: str) -> bool:
    return len(numbers(text)) == 1 and not any(c.isalpha() for c in text)


def _stops(template: Template, shown: bool) -> tuple[str, ...]:
    """Return the texts at which the model would begin a row of its own."""
    first = template.turns[0].parts[0] if template.turns[0].parts and not template.chat else None
    begins = first.text.strip().partition("\n")[0] if isinstance(first, Words) else ""
    return (*((BETWEEN,) if shown and not template.chat else ()), *((f"\n{begins}",) if begins else ()))
