"""Chain of thought and self-consistency. Run: python -m pytest tests/methods/words/test_chain_of_thought.py"""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from foreword.core.artefact import Artefact
from foreword.core.format import Format
from foreword.core.template import Template
from foreword.errors import ConfigError, DataError
from foreword.inference.answers import answer_rows
from foreword.inference.batched import stacked_scores
from foreword.inference.generation import write_rows
from foreword.inference.predictor import Prompted
from foreword.inference.reasoning import REASONED, concluded_form
from foreword.inference.scoring import encode_rows, score_rows
from foreword.methods.registry import make_job, train
from foreword.methods.words.chain_of_thought import ChainOfThoughtConfig, reasoning_template
from foreword.models.load import load
from foreword.models.tiny import tiny
from foreword.tasks.extract import NO_ANSWER
from foreword.tasks.task import Task
from foreword.tasks.vote import majority_at
from tests.methods.planted_lm import markov_lm

LAW = {"7": 0.5, "4": 0.3, "2": 0.2}
ROWS = [{"q": f"question {n}?", "answer": "7", "reasoning": f"Because of {n}."} for n in range(24)]


def numbers_task(rows: int = 1) -> Task:
    few = [{"q": f"test {n}?", "answer": "7"} for n in range(rows)]
    return Task(
        train=ROWS, validation=ROWS[:2], test=few, template="Q: {q}\nA:{answer}", metric="number", name="sevens"
    )


def law_value(n: int) -> float:
    """The chance that the vote of n is right: over all counts, one leader in t where t lead."""
    total = 0.0
    for counts in itertools.product(range(n + 1), repeat=2):
        if sum(counts) > n:
            continue
        whole = (*counts, n - sum(counts))
        chance = math.factorial(n) / math.prod(map(math.factorial, whole))
        chance *= math.prod(p**c for p, c in zip(LAW.values(), whole, strict=True))
        lead = [i for i, c in enumerate(whole) if c == max(whole)]
        total += chance * (0 in lead) / len(lead)
    return total


def fewest(texts) -> int:
    """How many of these texts, in order, it takes until whatever the others say changes nothing: every way is tried."""
    answers = [text.strip() for text in texts]
    for seen in range(1, len(answers)):
        known, left = Counter(answers[:seen]), len(answers) - seen
        [(first, most)] = known.most_common(1)
        if all(most > known[other] + left for other in ("7", "4", "2") if other != first):
            return seen
    return len(answers)


@pytest.fixture(scope="module")
def lm():
    """Whatever is asked, the instruction ends with a colon, and one of three digits follows by the law."""
    return markov_lm({":": LAW})


def voters(lm, rows: int, **options) -> tuple[Artefact, Task]:
    task = numbers_task(rows)
    options = {"instruction": "So:", "max_new_tokens": 4, "temperature": 1.0, **options}
    return train(lm, task.with_(validation=()), "chain-of-thought", **options).artefact, task


@pytest.mark.parametrize(("n", "rows"), [(1, 600), (5, 300), (15, 200), (41, 120)])
def test_a_vote_is_right_as_often_as_the_law_says(lm, n, rows):
    """Within the 99% interval of the exact multinomial value, which the greedy answer, always right, is not."""
    artefact, task = voters(lm, rows, samples=n, seed=2)
    decoding = replace(artefact.format.decoding, do_sample=True)  # a single text would not be drawn
    artefact = replace(artefact, format=replace(artefact.format, decoding=decoding))
    answered = answer_rows(lm, [(artefact, task.test)])[0]
    right = sum(one.answer == "7" for one in answered) / rows
    wanted = law_value(n)
    spread = 2.576 * math.sqrt(wanted * (1 - wanted) / rows)
    assert abs(right - wanted) < spread + 1e-9
    assert abs(right - 1.0) > spread or n == 41
    assert abs(right - 1 / 3) > spread
    assert all(one.asked == n >= one.drawn >= (n + 1) // 2 for one in answered)
    assert sum(one.drawn for one in answered) < n * rows or n == 1


def test_an_early_end_changes_no_vote_and_saves_samples(lm):
    artefact, task = voters(lm, 60, samples=15)
    whole = replace(
        artefact, format=replace(artefact.format, decoding=replace(artefact.format.decoding, early_stop=False))
    )
    early, late = (answer_rows(lm, [(a, task.test)])[0] for a in (artefact, whole))
    assert [one.answer for one in early] == [one.answer for one in late]
    assert all(one.drawn == 15 for one in late)
    assert [one.drawn for one in early] == [fewest(one.texts) for one in late]
    assert sum(one.drawn for one in early) < sum(one.drawn for one in late)
    lonely = [answer_rows(lm, [(artefact, [row])])[0][0] for row in task.test[:10]]
    assert [(one.answer, one.drawn) for one in lonely] == [(one.answer, one.drawn) for one in early[:10]]
    counts = [Counter(t.strip() for t in one.texts) for one in late]
    assert [one.votes for one in late] == [dict(c) for c in counts]
    estimate = np.mean([majority_at(5, c, ["7"], 15) for c in counts])
    assert abs(estimate - law_value(5)) < 2.576 * math.sqrt(law_value(5) / 60)


def test_the_same_seed_draws_the_same_and_another_does_not(lm):
    task = numbers_task(40).with_(validation=())
    made = [
        train(
            lm, task, "chain-of-thought", seed=s, samples=3, instruction="So:", max_new_tokens=4, temperature=1.0
        ).artefact
        for s in (1, 1, 2)
    ]
    found = [[one.texts for one in answer_rows(lm, [(a, task.test)])[0]] for a in made]
    assert found[0] == found[1] != found[2]


def test_likelihoods_weigh_votes():
    """Two rare answers against one likely one: the likely one's weight is more."""
    lm = markov_lm({":": {"7": 0.34, "4": 0.66}, "4": {"a": 0.05, "b": 0.05, "c": 0.9}, "7": {"": 1.0}})
    artefact, task = voters(lm, 200, samples=3, vote="likelihood", early_stop=False)
    heavy = answer_rows(lm, [(artefact, task.test)])[0]
    for one in heavy:
        weights: Counter = Counter()
        for text in one.texts:
            # 4 is followed by a letter, so it is no number of its own: those samples cast no vote.
            if text.strip() == "7":
                weights["7"] += math.exp((math.log(0.34) + 0.0) / 2)
        assert one.votes == pytest.approx(dict(weights), abs=1e-6)
    assert {one.answer for one in heavy} == {"7", NO_ANSWER}


def test_no_answer_counts_as_wrong():
    """Half of the texts have none; with labels the first label must not win by default."""
    lm = markov_lm({":": {"z": 1.0}})
    artefact, task = voters(lm, 10)
    assert {one.answer for one in answer_rows(lm, [(artefact, task.test)])[0]} == {NO_ANSWER}
    found = Prompted(lm, artefact).evaluate(task)
    assert found["number"] == 0 and found["no_answer"] == 1
    rows = [{"q": f"t{n}", "label": "yes" if n < 9 else "no"} for n in range(10)]
    labelled = Task(train=rows, test=rows, template="Q: {q}\nA:{answer}", labels=["yes", "no"])
    made = train(lm, labelled, "chain-of-thought", instruction="So:", max_new_tokens=4).artefact
    scores = score_rows(lm, [(made, labelled.test)])[0]
    assert scores.shape == (10, 3) and (scores.argmax(-1) == 2).all()
    assert Prompted(lm, made).evaluate(labelled)["accuracy"] == 0
    assert [p.label for p in Prompted(lm, made).predict_rows(labelled.test)] == [""] * 10
    assert made.metrics["validation"]["accuracy"] == 0


def test_labels_are_found_by_their_words_and_vote():
    lm = markov_lm({":": {"y": 0.7, "n": 0.3}})
    rows = [{"q": f"t{n}", "label": "agree"} for n in range(40)]
    task = Task(train=rows, test=rows, template="Q: {q}\nA:{answer}", labels=["refuse", "agree"])
    task = task.with_(label_words={"agree": ("y", "yes"), "refuse": ("n",)}, validation=())
    made = train(lm, task, "chain-of-thought", instruction="So:", max_new_tokens=4, samples=9, temperature=1.0).artefact
    answered = answer_rows(lm, [(made, task.test)])[0]
    scores = score_rows(lm, [(made, task.test)])[0]
    assert [("n", "y")[i] for i in scores.argmax(-1).tolist()] == [one.answer for one in answered]
    assert scores.exp().sum(-1) == pytest.approx(np.ones(40), abs=1e-6)
    assert Prompted(lm, made).evaluate(task)["accuracy"] > 0.8
    shown = Prompted(lm, made).predict_rows(task.test[:1])[0]
    assert shown.label == "agree" and len(shown.texts) >= 5


def test_label_words_are_scored_after_the_reasoning():
    """Equals the label words scored by hand in the second stage's template, over what was written in the first."""
    lm = tiny("causal", dtype="float64")
    rows = [{"q": f"t{n} and {n * n}", "label": "yn"[n % 2]} for n in range(6)]
    task = Task(train=rows, test=rows, template="Q: {q}\nA: {answer}", labels=["y", "n"]).with_(validation=())
    options = {"extract": "score", "max_new_tokens": 9, "conclude": "Therefore:", "instruction": "Let us see."}
    made = train(lm, task, "chain-of-thought", **options).artefact
    scores = score_rows(lm, [(made, task.test)])[0]
    texts = write_rows(lm, [(made, task.test)])[0]
    form = Format(Template.parse("Q: {q}\nA: Let us see. {written} Therefore: {answer}"), ("y", "n"), (("y",), ("n",)))
    second = [
        replace(row, fields={**row.fields, "written": text.strip()}) for row, text in zip(task.test, texts, strict=True)
    ]
    by_hand = stacked_scores(lm, [made.value], [encode_rows(lm, form, second)])[0].log_softmax(-1)
    assert torch.allclose(scores, by_hand, atol=1e-9)
    several = train(lm, task, "chain-of-thought", samples=4, **options).artefact
    mean = score_rows(lm, [(several, task.test)])[0]
    assert mean.exp().sum(-1) == pytest.approx(np.ones(6), abs=1e-6)
    assert not torch.allclose(mean, scores, atol=1e-3)
    assert REASONED not in made.format.template.fields
    assert REASONED in concluded_form(made.format).template.fields


def test_demonstrations_show_reasoning_and_answers_and_none_is_asked():
    lm = tiny("causal")
    rows = [*ROWS, {"q": "test 0?", "answer": "7", "reasoning": "It is asked."}]
    task = Task(
        train=rows, validation=ROWS[:20], test=[{"q": "test 0?", "answer": "7"}], template="Q: {q}\nA: {answer}"
    )
    made = train(lm, task, "chain-of-thought", demonstrations=3, max_new_tokens=4, seed=3).artefact
    source = made.format.template.source
    assert isinstance(source, str)
    shown, _, own = source.rpartition("\n\n")
    assert own == "Q: {q}\nA: Let's think step by step.{answer}"
    parts = shown.split("\n\n")
    assert len(set(parts)) == 3
    for part in parts:
        number = part.split()[2].rstrip("?'}")
        assert int(number) >= 20, "neither a development row nor the test row is shown"
        shown_q, because = f"{{'question {number}?'}}", f"{{'Because of {number}.'}}"  # texts of rows stay data
        assert part == f"Q: {shown_q}\nA: Let's think step by step. {because} The answer is {{'7'}}."
    assert "in clear" in made._privacy()
    assert made.format.decoding.stop_strings == ("\n\n", "\nQ:")
    other = train(lm, task, "chain-of-thought", demonstrations=3, max_new_tokens=4, seed=4).artefact
    assert other.format.template.source != source
    with pytest.raises(DataError, match=r"5 demonstrations need as many .* has 4"):
        train(lm, task, "chain-of-thought", demonstrations=5)


def test_braces_in_demonstrations_stay_text():
    lm = tiny("causal")
    rows = [{"q": f"{{q}} {n} {{mask}}", "answer": "{answer}", "reasoning": "{x|shorten}"} for n in range(4)]
    task = Task(train=rows, test=[{"q": "{soft:3}", "answer": "x"}], template="Q: {q} A: {answer}").with_(validation=())
    made = train(lm, task, "chain-of-thought", demonstrations=2, max_new_tokens=4).artefact
    assert made.format.template.fields == ("q",) and not made.format.template.slots
    again = Format.from_json(made.format.to_json())
    assert again.to_json() == made.format.to_json()
    assert write_rows(lm, [(made, task.test)])[0] == write_rows(lm, [(replace(made, format=again), task.test)])[0]


def test_in_a_chat_demonstrations_are_turns():
    form = Format(Template.parse([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{q}"}]))
    found = reasoning_template(form, numbers_task().train[:1], "Think.", "The answer is").source
    assert [turn["role"] for turn in found] == ["system", "user", "assistant", "user"]
    assert found[2]["content"].endswith("The answer is {'7'}.")
    assert found[3]["content"] == "{q}\nThink."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extract": "choice"}, "answers are texts; give auto, number or span"),
        ({"conclude": "Thus"}, "not found again"),
        ({"samples": 0}, "at least 1"), ({"temperature": 0}, "above 0"), ({"max_new_tokens": 600}, "no room"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        train(tiny("causal"), numbers_task(), "chain-of-thought", **options)


def test_masked_models_and_gradients_are_refused_with_a_sentence():
    task = Task(ROWS, text="q", template="Q: {q} A: {mask}")
    with pytest.raises(ConfigError, match="masked model cannot write; use a causal model"):
        make_job(load("foreword-tiny"), task, "chain-of-thought")
    labelled = Task([{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(40)], template="{text} {mask}")
    with pytest.raises(ConfigError, match="chain-of-thought needs a causal model, and this one is masked"):
        train(load("foreword-tiny"), labelled, "chain-of-thought")
    with pytest.raises(ConfigError, match=r"linear-probe needs labels.*, and task has answers in text"):
        train(tiny("causal"), Task(ROWS, text="q"), "linear-probe")


def test_config_defaults_are_those_of_the_papers():
    assert ChainOfThoughtConfig().instruction == "Let's think step by step."
    assert ChainOfThoughtConfig().temperature == 0.7
