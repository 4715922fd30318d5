"""Demonstrations: what stands before a row, how many, in which order, and never the row itself.

python -m pytest tests/methods/words/test_few_shot.py
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from foreword.core.artefact import Artefact
from foreword.core.prompts import HardPrompt
from foreword.core.template import Literal
from foreword.core.values import Ensemble, Neighbours
from foreword.errors import ConfigError, DataError
from foreword.inference.retrieval import embeddings, encode_near, nearest
from foreword.inference.scoring import ScoreRequest, encode_rows, score_readings, score_rows
from foreword.methods.registry import train
from foreword.methods.words.demonstrations import entropy, pool_of
from foreword.models.load import load
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from tests.planted import planted_task
from tests.seeds import new_seed

KINDS = {"masked": "foreword-tiny", "causal": "foreword-tiny-causal"}
NOTHING = HardPrompt.empty()
LONG = load("foreword-tiny-causal").dims.context


@pytest.fixture(params=KINDS)
def lm(request):
    return load(KINDS[request.param])


@pytest.fixture
def task():
    return planted_task(new_seed(), train=24, validation=8, test=16)


def shown(artefact: Artefact) -> list[str]:
    """The texts of the rows in the template, in order."""
    return [p.text for p in artefact.format.template.parts if isinstance(p, Literal) and p.data]


def test_the_prompt_is_the_template_s_own_text_filled_and_scores_as_written_by_hand(lm, task):
    artefact = train(lm, task, "few-shot", demos=3, separator=" ## ").artefact
    label_of = {row.fields["text"]: task.labels[row.label] for row in task.train}
    end = {"masked": " .", "causal": ""}[lm.kind]
    by_hand = "".join(f"{text} : {label_of[text]}{end} ## " for text in shown(artefact))
    form = task.format(lm.kind, template=by_hand + task.template[lm.kind])
    mine, other = (encode_rows(lm, f, task.test) for f in (artefact.format, form))
    for one, two in zip(mine, other, strict=True):
        assert one.ids_S.tolist() == two.ids_S.tolist()
    wanted = score_rows(lm, [(replace(artefact, format=form), task.test)])[0]
    assert torch.allclose(score_rows(lm, [(artefact, task.test)])[0], wanted, atol=1e-5)


def test_what_all_rows_begin_with_is_read_once(task, monkeypatch):
    """A counter of tokens: with the lead shared, demonstrations are read once, and scores stay what they were."""
    lm = load("foreword-tiny-causal", dtype=torch.float64)
    artefact = train(lm, task.with_(validation=()), "few-shot", demos=2).artefact
    encoded = encode_rows(lm, artefact.format, task.test)
    alone = torch.cat([score_rows(lm, [(artefact, [row])])[0] for row in task.test])
    counted = []
    hidden, states = lm.hidden_at, lm.states

    def count(inputs, *more):
        counted.append(int(inputs.attend_BS.sum()))
        return hidden(inputs, *more)

    def count_lead(inputs):
        counted.append(int(inputs.attend_BS.sum()))
        return states(inputs)

    monkeypatch.setattr(lm, "hidden_at", count)
    monkeypatch.setattr(lm, "states", count_lead)
    together = score_rows(lm, [(artefact, task.test)])[0]
    lead = encoded[0].shared
    rest = sum(len(e) - lead for e in encoded)
    assert lead > sum(map(len, shown(artefact)))  # a byte a piece: the demonstrations are in it
    assert sum(counted) == lead + rest
    assert torch.allclose(together, alone, atol=1e-10)


def test_a_row_whose_text_changes_the_pieces_before_it_is_read_whole():
    """Where a field joins the text before it into other pieces, its row shares nothing, and every score is right."""
    lm = load("foreword-mini-causal")
    task = Task(
        train=[{"text": f"row {n}", "label": n % 2} for n in range(4)],
        test=[{"text": t, "label": 0} for t in ("fine film", "ness and joy", "##ing", "-")],
        template="good{text} : {answer}",
        name="joined",
    )
    form = task.format("causal", label_words={"0": "bad", "1": "good"})
    encoded = encode_rows(lm, form, task.test)
    together = score_readings(lm, [ScoreRequest(NOTHING, form, task.test)])[0]
    alone = torch.cat([score_readings(lm, [ScoreRequest(NOTHING, form, [row])])[0] for row in task.test])
    assert torch.allclose(together, alone, atol=1e-4)
    assert all(e.ids_S[: e.shared].tolist() == encoded[0].ids_S[: e.shared].tolist() for e in encoded)


@pytest.mark.parametrize("select", ["balanced", "random", "validated"])
@pytest.mark.parametrize("order", ["drawn", "entropy"])
def test_as_many_as_fit_are_shown_whole_and_counted(select, order, lm, task):
    artefact = train(lm, task, "few-shot", select=select, order=order, candidates=3).artefact
    told = artefact.metrics["demonstrations"]
    texts = shown(artefact)
    assert told["shown"] == len(texts) < told["asked"] == 24
    assert len(set(texts)) == len(texts)
    encoded = encode_rows(lm, artefact.format, [*task.train, *task.validation, *task.test])
    assert not any(e.cut for e in encoded)
    words = {row.fields["text"]: row.label for row in task.train}
    if select != "random":
        counts = np.bincount([words[text] for text in texts], minlength=2)
        assert abs(counts[0] - counts[1]) <= 1
    longest = max(map(len, encoded))
    assert longest + 2 * max(len(text) for text in words) > lm.dims.context - 40  # nearly full
    one_more = train(lm, task, "few-shot", demos=told["shown"], select=select, order=order, candidates=3).artefact
    assert len(shown(one_more)) == told["shown"]


def test_shuffled_orders_differ_and_the_one_of_highest_entropy_is_taken(lm, task):
    artefact = train(lm, task, "few-shot", demos=4, order="entropy", candidates=6).artefact
    told = artefact.metrics["order_entropy"]
    score = score_rows(lm, [(artefact, task.validation)])[0]
    assert entropy(score)[0] == pytest.approx(told["chosen"], abs=1e-3)
    assert told["lowest"] <= told["chosen"]


def test_entropy_of_hand_made_scores():
    """Three rows say label 0 and one says label 1; each is sure to a degree that is known."""
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
    globally, locally = entropy(torch.from_numpy(np.log(p)))
    assert globally == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert locally == pytest.approx(float(-(p * np.log(p)).sum(1).mean()))
    assert entropy(torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])) == (0.0, 0.0)


def test_no_row_of_another_split_is_shown_and_no_row_stands_before_itself(lm, task):
    leaky = task.with_(train=(*task.test, *task.validation, *task.train))
    held = {row.text() for row in (*task.test, *task.validation)}
    assert not {row.text() for row in pool_of(leaky)} & held
    artefact = train(lm, leaky, "few-shot").artefact
    assert not set(shown(artefact)) & {row.fields["text"] for row in (*task.test, *task.validation)}
    with pytest.raises(DataError, match="development or test rows too"):
        train(lm, task.with_(train=task.test), "few-shot")
    near = train(lm, task, "few-shot-knn", demos=3).artefact
    assert isinstance(near.value, Neighbours)
    for row, found in zip(
        task.train, nearest(near.value, task.train, near.value.embed_ND[: len(task.train)]), strict=True
    ):
        assert row.fields["text"] not in {near.value.examples[i].fields["text"] for i in found}


def test_neighbours_are_the_nearest_by_brute_force_and_as_many_as_fit(lm, task):
    near = train(lm, task, "few-shot-knn", demos=30).artefact
    assert isinstance(near.value, Neighbours)
    query = embeddings(lm, near.format, task.test, None)
    for row_D, found in zip(query, nearest(near.value, task.test, query), strict=True):
        cosine = [float(torch.dot(row_D, other_D)) for other_D in near.value.embed_ND]
        assert found == sorted(range(len(cosine)), key=lambda i: -cosine[i])[:30]
    encoded, counts = encode_near(lm, near.value, near.format, task.test)
    assert all(0 < c < 24 for c in counts)
    assert not any(e.cut for e in encoded)
    assert near.metrics["demonstrations"]["least"] <= near.metrics["demonstrations"]["shown"]


def test_each_row_with_its_neighbours_scores_as_written_out(lm, task, tmp_path):
    near = train(lm, task, "few-shot-knn", demos=2, separator=" / ").artefact
    again = Artefact.load(near.save(tmp_path / "x"))
    scores = score_rows(lm, [(again, task.test)])[0]
    value = near.value
    assert isinstance(value, Neighbours)
    end = {"masked": " .", "causal": ""}[lm.kind]
    found = nearest(value, task.test, embeddings(lm, near.format, task.test, None))
    for row, own, score in zip(task.test, found, scores, strict=True):
        said = [(value.examples[i].fields["text"], value.examples[i].word) for i in reversed(own)]
        text = "".join(f"{t} : {w}{end} / " for t, w in said)
        form = task.format(lm.kind, template=text + task.template[lm.kind])
        assert torch.allclose(score_readings(lm, [ScoreRequest(NOTHING, form, [row])])[0][0], score, atol=1e-4)
    assert "in clear" in (tmp_path / "x" / "README.md").read_text()


def test_special_tokens_in_the_rows_stay_text(lm):
    """`[MASK]` in a training row must not become a second mask, and braces and quotes must survive the artefact."""
    lm = load({"masked": "foreword-mini", "causal": "foreword-mini-causal"}[lm.kind])
    nasty = ["a [MASK] b", "x [SEP] {text} 'q' \\ \"z\"", "{answer} </s> [CLS]", "{{}} it's"]
    task = Task(
        train=[{"text": t, "label": n % 2} for n, t in enumerate(nasty)],
        test=[{"text": "plain", "label": 0}],
        name="nasty",
    )
    artefact = train(lm, task, "few-shot").artefact
    [encoded] = encode_rows(lm, artefact.format, task.test)
    special = {lm.tokenizer.mask_token_id, lm.tokenizer.sep_token_id, lm.tokenizer.cls_token_id}
    own = {"masked": 3, "causal": 1}[lm.kind]  # [CLS], and for a masked model the mask and [SEP]
    assert sum(int(i) in special for i in encoded.ids_S) == own
    assert sorted(shown(artefact)) == sorted(nasty)
    assert artefact.format.from_json(artefact.format.to_json()) == artefact.format


def test_sets_answer_as_an_ensemble(lm, task):
    artefact = train(lm, task, "few-shot", demos=2, sets=3).artefact
    assert isinstance(artefact.value, Ensemble)
    alone = [
        score_readings(lm, [ScoreRequest(m.value, m.format, task.test)])[0].double().softmax(-1)
        for m in artefact.value.members
    ]
    assert torch.allclose(score_rows(lm, [(artefact, task.test)])[0].exp(), sum(alone) / 3, atol=1e-6)
    assert artefact.holds_rows


def test_wrong_labels_in_the_demonstrations_cost_accuracy():
    """The control of a leak: the answers come from the labels shown. Over three rules drawn now, each row is shown its
    three nearest neighbours with true labels, and with swapped ones."""
    lm = load("foreword-mini-causal")
    right = np.zeros(2)
    for _ in range(3):
        seed = new_seed()
        task = planted_task(seed, train=48, validation=0, test=32).with_(validation=())
        swapped = task.with_(train=tuple(replace(r, label=1 - (r.label or 0)) for r in task.train))
        label = np.array([row.label for row in task.test])
        for n, shown_ in enumerate((task, swapped)):
            artefact = train(lm, shown_, "few-shot-knn", demos=3).artefact
            score = score_rows(lm, [(artefact, task.test)])[0].double().numpy()
            right[n] += (score.argmax(1) == label).mean() / 3
    assert right[0] > right[1] + 0.05, right


def test_what_cannot_be_is_refused_in_a_sentence(task):
    lm = load("foreword-tiny-causal")
    with pytest.raises(DataError, match="no row to show"):
        train(lm, task.with_(train=()), "few-shot")
    with pytest.raises(ConfigError, match=r"has \{soft:\.\.\.\} slots"):
        train(lm, task, "few-shot", form=task.format("causal", template="{soft:3}{text}{answer}"))
    rows = [{"a": "x", "b": f"y{n}", "label": n % 2} for n in range(4)]
    pair = Task(train=rows, test=[{"a": "x", "b": "z", "label": 0}], text=["a", "b"], name="pair")
    with pytest.raises(ConfigError, match="fields on both sides"):
        train(lm, pair, "few-shot", form=pair.format("causal", template="{a}{demos}{b}: {answer}"))
    with pytest.raises(ConfigError, match=r"\{demos\} 2 times"):
        task.format("causal", template="{demos}{demos}{text}")
    with pytest.raises(ConfigError, match="at least 1"):
        train(lm, task, "few-shot", demos=0)
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        train(lm, task, "few-shot", uncut=1.5)
    long = task.with_(test=(*task.test, Row({"text": "x" * 4 * LONG}, 0)))
    with pytest.raises(ConfigError, match=r"uncut=0\.95"):
        train(lm, long, "few-shot")
    assert train(lm, long, "few-shot", uncut=0.95).artefact.metrics["demonstrations"]["shown"] > 0
    with pytest.raises(ConfigError, match="needs labelled development rows"):
        train(lm, task.with_(validation=()), "few-shot", select="validated")


def test_other_methods_leave_the_place_for_demonstrations_empty(task):
    lm = load("foreword-tiny-causal")
    form = task.format("causal", template="Say it. {demos}{text} : {answer}")
    assert train(lm, task, "manual", form=form).artefact.format.template.source == "Say it. {text} : {answer}"
    shown_ = train(lm, task, "few-shot", form=form, demos=1).artefact.format.template.source
    assert shown_.startswith("Say it. {'")
    assert shown_.count("Say it.") == 1
