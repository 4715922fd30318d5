"""python -m pytest tests/inference/test_predictor.py"""

import math

import pytest
import torch

import foreword
from foreword.core.artefact import Artefact
from foreword.errors import ArtefactError, ConfigError, DataError
from foreword.methods import METHODS
from foreword.training.options import configure
from tests.planted import planted_task

ROWS = [{"sentence": w, "label": y} for n in range(30)
        for w, y in [(f"a fine film {n}", "good"), (f"a poor film {n}", "bad")]]  # fmt: skip


def test_the_notebook_path_from_rows_to_a_saved_artefact_and_back(tmp_path):
    lm = foreword.load("foreword-tiny")
    task = foreword.Task(ROWS, text="sentence", label="label")
    art = foreword.train(lm, task, "prompt-tuning", length=4, steps=3)
    found = art.predict(["fine film", "poor"])
    assert all(str(p) in ("good", "bad") for p in found)
    assert all(math.isclose(sum(p.probabilities.values()), 1.0, rel_tol=1e-9) for p in found)
    again = foreword.open_artefact(art.save(tmp_path / "x"))
    assert again.lm is not None
    assert [p.probabilities for p in again.predict(["fine film", "poor"])] == [p.probabilities for p in found]
    assert 0 <= art.evaluate(task)["accuracy"] <= 1
    other = foreword.load("foreword-tiny-causal")
    with pytest.raises(ArtefactError, match="masked"):
        foreword.open_artefact(tmp_path / "x", other)


def test_what_predict_is_given_is_checked():
    lm = foreword.load("foreword-tiny")
    art = foreword.train(lm, foreword.Task(ROWS, text="sentence"), "manual")
    with pytest.raises(ConfigError, match="brackets"):
        art.predict("fine film")
    with pytest.raises(DataError, match="text 2 is empty"):
        art.predict(["fine", " "])
    with pytest.raises(DataError, match="lacks sentence"):
        art.predict([{"text": "x"}])
    with pytest.raises(DataError, match="labels are"):
        art.evaluate(planted_task(1))
    assert art.predict([{"sentence": "x"}])[0].label == art.predict(["x"])[0].label


def test_a_bag_of_words_needs_no_model(tmp_path):
    art = foreword.train(foreword.load("foreword-tiny"), foreword.Task(ROWS, text="sentence"), "bag-of-words")
    folder = art.save(tmp_path / "x")
    opened = foreword.open_artefact(folder)
    assert opened.lm is None
    assert [p.label for p in opened.predict(["fine", "poor"])] == ["good", "bad"]


def test_word_counts_score_as_scikit_learn_does():
    """Our few lines of TF-IDF against scikit-learn's own pipeline on held-out rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from foreword.core.values.classifiers import row_words
    from foreword.inference.scoring import score_rows

    task = planted_task(3)
    art = foreword.train(foreword.load("foreword-tiny"), task, "bag-of-words", regularisation=2.0).artefact
    vectoriser = TfidfVectorizer(analyzer=lambda row: row_words(("text",), row.fields), sublinear_tf=True)
    x = vectoriser.fit_transform(task.train)
    model = LogisticRegression(C=2.0, max_iter=2000).fit(x, [row.label for row in task.train])
    wanted = torch.from_numpy(model.predict_proba(vectoriser.transform(task.test)))
    assert torch.allclose(score_rows(None, [(art, task.test)])[0].double().softmax(-1), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"length": "many"}, "not a whole number"),
        ({"length": "0"}, "out of range"),
        ({"learning_rate": "-1"}, "above 0"),
        ({"learning_rate": "nan"}, "not a number"),
        ({"init": "random"}, "uniform, vocabulary, labels, text"),
        ({"prompt_tuning_init_text": "x"}, "Did you mean init_text"),
        ({"lenght": "5"}, "Did you mean length"),
        ({"checkpointing": "perhaps"}, "true or false"),
    ],
)
def test_a_wrong_option_is_told_what_is_allowed(options, told):
    with pytest.raises(ConfigError, match=told):
        configure(METHODS["prompt-tuning"], options)


def test_options_from_strings_become_their_types():
    config = configure(METHODS["prompt-tuning"], {"length": "7", "learning_rate": "5e-3", "checkpointing": "true"})
    assert (config.length, config.learning_rate, config.checkpointing) == (7, 5e-3, True)
    assert configure(METHODS["linear-probe"], {"regularisation": "none"}).regularisation is None


def test_a_tampered_artefact_is_not_opened(tmp_path):
    art = foreword.train(foreword.load("foreword-tiny"), foreword.Task(ROWS, text="sentence"), "prompt-tuning", steps=1)
    folder = art.save(tmp_path / "x")
    data = bytearray((folder / "prompt.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "prompt.safetensors").write_bytes(data)
    with pytest.raises(ArtefactError, match="hash"):
        Artefact.load(folder)


def test_a_model_with_a_chat_template_is_asked_in_messages():
    lm = foreword.load("foreword-tiny-causal")
    task = foreword.Task(ROWS, text="sentence")
    assert not lm.instructed
    plain = foreword.train(lm, task, "prompt-tuning", length=2, steps=1).artefact.format.template
    lm.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    art = foreword.train(lm, task, "prompt-tuning", length=2, steps=1)
    assert art.artefact.format.template.chat
    assert not plain.chat
    assert art.predict(["fine film"])[0].label in ("good", "bad")
