"""A kind of value that this file alone knows is saved, loaded, checked, scored, mixed with others and trained.

Run: python -m pytest tests/core/test_values.py
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import pytest
import torch
from safetensors.torch import save as to_bytes

from foreword.core.artefact import RECORD, TENSORS, Artefact
from foreword.core.learnt import KINDS, Learnt, Reader, check_width
from foreword.core.prompts import HardPrompt, SoftPrompt
from foreword.core.record import SEAL
from foreword.core.serialise import check_ranks
from foreword.core.shapes import Float, Tensor
from foreword.errors import ArtefactError, ModelError
from foreword.inference.ensemble import ensemble
from foreword.inference.scoring import ScoreRequest, encode_value, own_scores, score_rows
from foreword.models.compatibility import check
from foreword.models.encoding.encoder import Encoder
from foreword.models.tiny import tiny
from foreword.serving.bank import make_entry
from foreword.tasks.rows import Row
from foreword.training.contract import GradientConfig, Learner
from foreword.training.joint_step import TrainingExample, step_gradients
from tests.serving.made import artefact, saved

ROWS = [
    Row({"text": text}, label) for label, text in ((1, "a fine film"), (0, "a poor one"), (1, "fine, the rest too"))
]


@final
@dataclass(frozen=True, eq=False)
class Scaled(Learnt, form="scaled"):
    """Hold one vector, and how much of it stands at each position of a soft prompt."""

    embed_D: Float[Tensor, "D"]
    share_P: Float[Tensor, "P"]

    @property
    def as_prompt(self) -> SoftPrompt:
        return SoftPrompt(self.share_P[:, None] * self.embed_D)

    def tensors(self) -> dict[str, Tensor]:
        return {"embed": self.embed_D, "share": self.share_P}

    def record(self) -> dict[str, Any]:
        return {"length": len(self.share_P)}

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        return {"embed", "share"}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "Scaled":
        check_ranks(tensors, embed=1, share=1)
        if record["length"] != len(tensors["share"]):
            raise ArtefactError("the shares are not one a position.")
        return Scaled(tensors["embed"], tensors["share"])

    def check_model(self, lm: Reader) -> None:
        check_width(lm, len(self.embed_D))


@final
@dataclass(frozen=True, eq=False)
class Always(Learnt, form="always"):
    """Hold the same scores for every row; no model is read."""

    needs_model = False
    score_C: Float[Tensor, "C"]

    @property
    def any_model(self) -> bool:
        return True

    @property
    def label_count(self) -> int:
        return len(self.score_C)

    def tensors(self) -> dict[str, Tensor]:
        return {"score": self.score_C}

    def record(self) -> dict[str, Any]:
        return {}

    @classmethod
    def tensor_names(cls, record: Mapping[str, Any]) -> set[str]:
        return {"score"}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> "Always":
        return Always(tensors["score"])


@own_scores.register
def _(value: Always, lm: object, reading: ScoreRequest, tokens_per_batch: int | None) -> Tensor:
    return value.score_C.expand(len(reading.rows), -1)


@pytest.fixture(scope="module", autouse=True)
def planted() -> Iterator[None]:
    yield
    for kind in (Scaled, Always):
        del KINDS[kind.form]


@pytest.fixture(params=["masked", "causal"])
def lm(request):
    return tiny(request.param)


def made(lm: Any, form: str = "ahead") -> Artefact:
    """An artefact of the planted kind, of the size of a soft prompt's."""
    soft = artefact(lm, form)
    return replace(soft, value=Scaled(soft.value.embed_PD[0], torch.tensor([1.0, 0.5, -2.0])), method="planted")


def test_a_kind_is_known_by_its_form_and_by_no_other():
    assert KINDS["scaled"] is Scaled
    assert Scaled.form == "scaled"
    with pytest.raises(AssertionError, match="two kinds have the form 'soft'"):

        class Second(Learnt, form="soft"):
            pass


def test_it_comes_back_bit_for_bit(lm, tmp_path):
    before = made(lm)
    after = Artefact.load(before.save(tmp_path / "x"))
    assert isinstance(after.value, Scaled)
    assert after.form == "scaled"
    assert after.bytes_stored == 4 * (lm.dims.width + 3)
    again = after.save(tmp_path / "y")
    for name in (TENSORS, RECORD):
        assert (tmp_path / "x" / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"share": torch.ones(2)}, "not one a position"),
        ({"share": torch.ones(3, 1)}, "1 sizes were expected"),
        ({"share": torch.tensor([1.0, torch.nan, 1.0])}, "NaN"),
        ({"share": torch.ones(3, dtype=torch.long)}, "a float was expected"),
        ({"more": torch.ones(1)}, "has 'more', which no value of the form 'scaled' has"),
        ({"share": None}, "no 'share', which a value of the form 'scaled' has"),
    ],
)
def test_damage_is_refused_in_a_sentence(change, said, tmp_path):
    folder = made(tiny("masked")).save(tmp_path / "x")
    tensors = {
        name: tensor for name, tensor in (Artefact.load(folder).value.tensors() | change).items() if tensor is not None
    }
    data = to_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    record = json.loads((folder / RECORD).read_text())
    del record[SEAL]
    record["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    with pytest.raises(ArtefactError, match=said):
        Artefact.read({TENSORS: data, RECORD: json.dumps(record).encode()}, "x")


def test_a_form_that_nobody_has_is_refused(tmp_path):
    folder = made(tiny("masked")).save(tmp_path / "x")
    record = json.loads((folder / RECORD).read_text())
    del record[SEAL]
    record["form"] = "unheard"
    contents = {TENSORS: (folder / TENSORS).read_bytes(), RECORD: json.dumps(record).encode()}
    with pytest.raises(ArtefactError, match=r"form 'unheard' is unknown; known are .*soft.*scaled"):
        Artefact.read(contents, "x")


def test_it_must_fit_the_model(lm):
    assert check(lm, made(lm)) is None
    narrow = replace(made(lm), value=Scaled(torch.ones(7), torch.ones(3)))
    with pytest.raises(ArtefactError, match="vectors of 7 numbers"):
        check(lm, narrow)
    long = replace(made(lm), value=Scaled(torch.ones(lm.dims.width), torch.ones(4)))
    with pytest.raises(ArtefactError, match="a prompt of 4 positions and a template with slots for 3"):
        check(lm, long)


def test_it_is_scored_as_the_prompt_that_it_stands_for(lm):
    planted = made(lm)
    soft = replace(planted, value=planted.value.as_prompt)
    one, other, mixed = (
        score_rows(lm, pairs)[0]
        for pairs in ([(planted, ROWS)], [(soft, ROWS)], [(planted, ROWS), (artefact(lm, "hard"), ROWS)])
    )
    assert torch.equal(one, other)
    torch.testing.assert_close(mixed, one, rtol=0, atol=1e-5)
    bare = replace(planted, value=SoftPrompt(torch.zeros(3, lm.dims.width)))
    assert not torch.allclose(one, score_rows(lm, [(bare, ROWS)])[0])


def test_it_joins_an_ensemble_that_is_saved_and_served(lm, tmp_path):
    planted, soft, words = made(lm), artefact(lm, "ahead", seed=1), artefact(lm, "hard")
    both = ensemble({"planted": planted, "soft": soft, "words": words})
    again = Artefact.load(both.save(tmp_path / "x"))
    assert [value.form for value, _ in again.value.parts(again.format)] == ["scaled", "soft", "hard"]
    scores = [score_rows(lm, [(one, ROWS)])[0].double().softmax(-1) for one in (planted, soft, words)]
    mean = torch.stack(scores).mean(0)
    torch.testing.assert_close(score_rows(lm, [(again, ROWS)])[0].double().softmax(-1), mean, rtol=0, atol=1e-5)


def test_gradients_reach_what_it_is_made_of(lm):
    planted = made(lm)
    names = planted.value.tensors()
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in names.items()}
    learner = Learner(leaves, lambda leaves: planted.value.with_tensors(leaves), planted.format, GradientConfig())
    encoded = encode_value(lm, planted.value, planted.format, ROWS)
    examples = [TrainingExample(0, e, row.label, 1 / len(ROWS)) for e, row in zip(encoded, ROWS, strict=True)]
    [loss], _ = step_gradients(lm, [learner], examples, 500)
    wanted = {name: tensor.detach().clone().requires_grad_() for name, tensor in names.items()}
    prompt = (wanted["share"][:, None] * wanted["embed"]).detach().requires_grad_()
    soft = Learner({"embed": prompt}, lambda leaves: SoftPrompt(leaves["embed"]), planted.format, GradientConfig())
    [same], _ = step_gradients(lm, [soft], examples, 500)
    assert loss == pytest.approx(same)
    assert prompt.grad is not None
    (wanted["share"][:, None] * wanted["embed"]).backward(prompt.grad)
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, wanted[name].grad)


def test_it_is_served_as_its_prompt(tmp_path):
    lm = tiny("causal")
    planted = made(lm)
    entry = make_entry(lm, saved(tmp_path, "x", planted), planted, lambda form, extra: Encoder.build(lm, form, extra))
    assert torch.equal(entry.value.embed_PD, planted.value.as_prompt.embed_PD)


def test_a_kind_with_scores_of_its_own_needs_no_model(tmp_path):
    plain = artefact(tiny("masked"), "hard")
    always = replace(plain, value=Always(torch.tensor([0.25, -1.0])), fingerprint={})
    again = Artefact.load(always.save(tmp_path / "x"))
    assert torch.equal(score_rows(None, [(again, ROWS)])[0], torch.tensor([[0.25, -1.0]] * 3))
    with pytest.raises(ModelError, match="needs its model"):
        score_rows(None, [(replace(plain, value=HardPrompt.empty()), ROWS)])
    with pytest.raises(ArtefactError, match="scores for 3 labels, and its record names 2"):
        Artefact.load(replace(always, value=Always(torch.zeros(3))).save(tmp_path / "y"))
    with pytest.raises(ArtefactError, match="form always"):
        ensemble({"always": always, "words": plain})
