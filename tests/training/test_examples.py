"""Answers in text as what is learnt: the library's own loss on the target alone, its end included.

Run: python -m pytest tests/training/test_examples.py
"""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from foreword.core.format import Decoding, Format
from foreword.core.prompts import SoftPrompt
from foreword.core.template import Template
from foreword.errors import ConfigError, DataError
from foreword.methods import METHODS
from foreword.methods.registry import make_job
from foreword.models.base import FrozenLM
from foreword.models.hf.lm import HFLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import load, wrap
from foreword.models.tiny import tiny
from foreword.tasks.rows import Row
from foreword.tasks.task import Task
from foreword.training.contract import GradientConfig, GradientMethod, Learner
from foreword.training.examples import ExampleRows, encode_targets, reference_nll
from foreword.training.joint_step import step_gradients
from foreword.training.loop import Run, fit
from foreword.training.trainer import Trained, train_many
from tests.models.zoo import build
from tests.planted import planted_task, planted_texts
from tests.seeds import new_seed

WORDS = "ab cd efgh ij klm n opq rst uv w xyz".split()
FORM = Format(Template.parse("{soft:3} {text}:{answer}"), decoding=Decoding(9, stop_strings=("\n",)), max_length=60)


def drawn(count: int, seed: int, most: int = 3) -> list[Row]:
    rng = random.Random(seed)

    def text(longest: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))

    return [
        Row(
            {"text": text(4)[:14].strip()},
            None,
            (),
            f"row {n}",
            tuple({text(3)[:9].strip() for _ in range(rng.randint(1, most))}),
        )
        for n in range(count)
    ]


def soft_learner(lm: FrozenLM, seed: int, **options: object) -> Learner:
    torch.manual_seed(seed)
    leaf = torch.randn(3, lm.dims.width, dtype=lm.dtype).requires_grad_()
    config = GradientConfig(**options)  # type: ignore[arg-type]
    return Learner({"embed": leaf}, lambda leaves: SoftPrompt(leaves["embed"]), FORM, config)


def plain_loss(lm: FrozenLM, leaf: torch.Tensor, pairs: list[tuple[Row, str]]) -> torch.Tensor:
    """The mean over all pieces of the targets, row after row, through the unmodified model and its own logits."""
    assert isinstance(lm, HFLM)
    model, byte = lm._model, lm.tokenizer
    total, pieces = leaf.new_zeros(()), 0
    for row, target in pairs:
        before = byte(f" {row.fields['text']}:", add_special_tokens=False)["input_ids"]
        after = [*byte(target, add_special_tokens=False)["input_ids"], min(lm.stops)]
        embed = model.get_input_embeddings()
        words = embed(torch.tensor([[*before, *after]]))
        whole = torch.cat([embed(torch.tensor([[byte.bos_token_id]])), leaf[None], words], dim=1)
        logits = model(inputs_embeds=whole).logits[0]
        total = total + cross_entropy(logits[-len(after) - 1 : -1], torch.tensor(after), reduction="sum")
        pieces += len(after)
    return total / pieces


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt-neox"])
@pytest.mark.parametrize("budget", [40, 10_000])
def test_loss_and_gradient_are_those_of_the_unmodified_model(family, budget):
    lm = wrap(build(family, torch.float64), byte_tokenizer("causal"), kind="causal")
    learner, some = soft_learner(lm, 1), drawn(5, new_seed())
    rows = ExampleRows.of(lm, FORM, some, 0, texts=True)
    chosen = [3, 0, 4, 1]
    examples = rows.examples(0, chosen, 0, seed=7)
    losses, _ = step_gradients(lm, [learner], examples, budget)
    leaf = learner.leaves["embed"]
    own = leaf.grad
    assert own is not None
    picked = {id(e): n for n, e in enumerate(rows.encoded)}
    flat = [(row, target) for row in some for target in row.targets]
    again = leaf.detach().clone().requires_grad_()
    loss = plain_loss(lm, again, [flat[picked[id(e.encoded)]] for e in examples])
    loss.backward()
    assert losses[0] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert again.grad is not None
    assert torch.allclose(own, again.grad, rtol=1e-5, atol=1e-6 * float(again.grad.abs().max()))
    everything = float(plain_loss(lm, again, flat).detach())
    assert reference_nll(lm, SoftPrompt(again.detach()), FORM, some) == pytest.approx(everything, rel=1e-6)


def test_every_reference_is_seen_once_before_any_is_seen_again():
    lm = tiny("causal")
    some = drawn(6, 3, most=4)
    rows = ExampleRows.of(lm, FORM, some, 0, texts=True)
    number = {id(e): n for n, e in enumerate(rows.encoded)}
    for row, own in enumerate(rows.of_N):
        for turn in range(3):
            epochs = range(turn * len(own), (turn + 1) * len(own))
            seen = [rows.examples(0, [row], epoch * len(rows), seed=5)[0].encoded for epoch in epochs]
            assert sorted(number[id(e)] for e in seen) == list(own)
    orders = {tuple(number[id(rows.examples(0, [0], e * len(rows), s)[0].encoded)] for e in range(6)) for s in range(9)}
    assert len(orders) > 1 or len(some[0].targets) == 1
    counts = Counter(rows.examples(0, [0, 1, 2], 0, 1)[0].share for _ in range(3))
    assert len(counts) == 1  # the same rows and seed: the same references


def test_labels_and_texts_train_in_one_stack_as_they_train_alone():
    lm = load("foreword-tiny-causal", dtype=torch.float64)
    options = {"steps": 4, "batch_size": 5, "eval_every": 2, "length": 3, "learning_rate": 1e-2}
    tasks = (planted_task(1, train=12, validation=4, test=4), planted_texts(2, train=12, validation=4, test=4))
    jobs = [make_job(lm, task, "prompt-tuning", options=options, seed=3) for task in tasks]
    together = train_many(lm, jobs)
    for job, mixed in zip(jobs, together, strict=True):
        alone = train_many(lm, [job])[0]
        assert isinstance(mixed, Trained) and isinstance(alone, Trained)
        one, other = mixed.artefact.value, alone.artefact.value
        assert isinstance(one, SoftPrompt) and isinstance(other, SoftPrompt)
        assert torch.allclose(one.embed_PD, other.embed_PD, rtol=0, atol=1e-6)
        assert mixed.artefact.metrics["validation"] == pytest.approx(alone.artefact.metrics["validation"], abs=1e-5)


def test_the_best_step_is_that_of_the_least_loss_on_development_references():
    lm = tiny("causal", dtype="float64")
    some = drawn(10, 4)
    learner = soft_learner(lm, 2, steps=8, batch_size=4, eval_every=1, learning_rate=0.5, clip=0.0)
    rows = [ExampleRows.of(lm, FORM, part, 0, texts=True) for part in (some[:6], some[6:])]
    run = Run("x", learner, rows[0], rows[1], seed=1)
    losses: dict[int, float] = {}

    def note(_: int) -> None:
        losses[run.step] = reference_nll(lm, SoftPrompt(learner.leaves["embed"].detach()), FORM, some[6:])

    fit(lm, [run], after_step=note)
    assert run.best_step == min(losses, key=losses.__getitem__)
    kept = reference_nll(lm, SoftPrompt(run.final_leaves()["embed"]), FORM, some[6:])
    assert kept == pytest.approx(min(losses.values()), rel=1e-9)
    assert [loss for _, loss in run.curve] == pytest.approx([*losses.values()], rel=1e-6)


def test_a_model_without_an_end_is_taught_the_first_stop_string():
    lm = tiny("causal")
    assert isinstance(lm, HFLM)
    model = build("llama")
    model.config.eos_token_id = None
    model.generation_config.eos_token_id = None
    byte = byte_tokenizer("causal")
    byte.eos_token = None
    endless = wrap(model, byte, kind="causal")
    assert not endless.stops and lm.stops
    row = Row({"text": "ab"}, None, (), "row", ("cd",))
    [taught] = encode_targets(endless, FORM, [row])
    [plain] = encode_targets(lm, FORM, [row])
    assert taught.plan is not None and plain.plan is not None
    letters = byte("cd", add_special_tokens=False)["input_ids"]
    assert plain.plan.words == (((*letters, lm.tokenizer.eos_token_id),),)
    assert taught.plan.words == (((*letters, *byte("\n", add_special_tokens=False)["input_ids"]),),)
    free = replace(FORM, decoding=Decoding(9))
    [endless_row] = encode_targets(endless, free, [row])
    assert endless_row.plan is not None and endless_row.plan.words == ((tuple(letters),),)


def test_the_embedded_model_ends_a_text_as_its_documents_ended():
    lm = load("foreword-mini-causal")
    assert lm.stops == {lm.tokenizer.sep_token_id}


LONG = "x" * 70


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ((), r"row 1 has no accepted answer"),
        (("fine", "\t "), r"row 1: The text '' has no pieces"),
        (("a\nb",), r"row 1: the target 'a\\nb' has '\\n' inside.*--stop"),
        ((LONG,), r"row 1: the target 'x+\.\.\.' has 71 pieces and the template \d+.*room for 60.*max_length"),
    ],
)
def test_targets_that_cannot_be_learnt_are_named(target, said):
    lm = tiny("causal")
    rows = [Row({"text": "ab"}, None, (), "row 0", ("cd",)), Row({"text": "ab"}, None, (), "row 1", target)]
    with pytest.raises(DataError, match=said):
        ExampleRows.of(lm, FORM, rows, 0, texts=True)


def test_a_target_and_its_end_take_room_from_the_row():
    lm = tiny("causal")
    row = Row({"text": "ab " * 40}, None, (), "row", ("x" * 30,))
    [encoded] = encode_targets(lm, FORM, [row])
    assert encoded.plan is not None and len(encoded) == 60
    assert len(encoded.ids_S) + encoded.plan.longest - 1 == 60 and encoded.cut > 0


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.gradient and "text" in m.answers])
def test_masked_models_and_formats_without_decoding_are_refused(name):
    task = planted_texts(1, train=6, validation=2, test=2)
    with pytest.raises(ConfigError, match="a masked model cannot write"):
        make_job(load("foreword-tiny"), task, name)
    causal, masked = load("foreword-tiny-causal"), load("foreword-tiny")
    form = task.format("causal")
    method = METHODS[name]
    assert isinstance(method, GradientMethod)
    with pytest.raises(ConfigError, match="a masked model cannot write"):
        method.require(masked.kind, task)
    [outcome] = train_many(causal, [make_job(causal, task, name, form=replace(form, decoding=None))])
    assert isinstance(outcome, ConfigError) and "no decoding" in str(outcome)


def test_metaprompting_still_needs_labels():
    task: Task = planted_texts(1, train=6, validation=2, test=2)
    lm = load("foreword-tiny-causal")
    [outcome] = train_many(lm, [make_job(lm, task, "metaprompting")])
    assert isinstance(outcome, ConfigError) and "answers in text" in str(outcome)
