"""Mixed batches, prompts of no length to long ones and texts of 1 to 100 pieces: each row gets what it gets alone.

python -m pytest tests/serving/test_mixed.py
"""

import random

import pytest
import torch
import transformers

from foreword.models.base import FrozenLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import load, wrap
from foreword.serving.engine import Engine, Room
from foreword.serving.protocol import RowRequest, Sampling
from tests.models.zoo import build
from tests.seeds import new_seed
from tests.serving.alone import alone_scores, alone_text
from tests.serving.made import artefact, saved

LENGTHS = (0, 1, 3, 5, 8, 64)
NEW = 32
ROOM = Room(memory=2**23, compiled=2**23, cache=2**25, rows=7, waiting=5000)
GREEDY = Sampling(max_tokens=NEW, temperature=0.0)
FORMS = {"causal": ("ahead", "behind", "around", "prefix"), "masked": ("ahead", "behind", "prefix")}


@pytest.fixture(scope="module")
def llama() -> FrozenLM:
    """Random weights large enough that every prompt says something else."""
    torch.manual_seed(new_seed(2**31))
    config = transformers.LlamaConfig(
        vocab_size=263, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=320, initializer_range=0.3, pad_token_id=1,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return wrap(transformers.LlamaForCausalLM(config).eval(), byte_tokenizer("causal"))


def every_prompt(lm: FrozenLM, root, seed: int):
    """One version and its artefact of each form and length; those without one are words and nothing at all."""
    made = []
    for form in FORMS[lm.kind]:
        made += [artefact(lm, form, length, seed + length) for length in LENGTHS if length]
    made += [artefact(lm, form) for form in ("hard", "bare") if form != "bare" or lm.kind == "causal"]
    return [(saved(root, f"p{n}", one), one) for n, one in enumerate(made)]


def some_text(rng: random.Random, length: int) -> str:
    """So many pieces of a tokenizer of bytes."""
    letters = "".join(rng.choices("abcdefgh ,.", k=length))
    return "x" + letters[1:-1] + "y" if length > 1 else "z"


def test_labels_of_every_form_and_length(llama, tmp_path):
    for lm in (llama, load("foreword-tiny"), load("foreword-tiny-causal")):
        rng = random.Random(7)
        prompts = every_prompt(lm, tmp_path / lm.name.replace("/", "-") / lm.kind, 11)
        longest = 100 if lm is llama else 30  # the tiny models have a short context
        rows = [(*rng.choice(prompts), some_text(rng, rng.randint(1, longest))) for _ in range(40)]
        rows += [(*one, some_text(rng, n + 1)) for n, one in enumerate(prompts)]
        fits = [row for row in rows if lm is llama or LENGTHS[-1] not in _lengths(row[1])]
        with Engine(lm, ROOM) as engine:
            found = engine.classify([RowRequest(version, text) for version, _, text in fits]).result(120)
        for one, (version, made, text) in zip(found, fits, strict=True):
            wanted = alone_scores(lm, made, text).tolist()
            assert list(one.probabilities.values()) == pytest.approx(wanted, abs=1e-5), (version.name, text)


def _lengths(made) -> list[int]:
    slots = [slot.length or 0 for slot in made.format.template.slots]
    return [*slots, getattr(made.value, "length", 0)]


def test_texts_of_every_form_and_length_token_for_token(llama, tmp_path):
    """Seven places for all of them: rows join and leave. Order, repetition and swapped prompts do what they should."""
    rng = random.Random(8)
    prompts = every_prompt(llama, tmp_path, 23)
    rows = [(version, made, some_text(rng, rng.randint(1, 100))) for version, made in prompts for _ in range(2)]
    rows[0] = (*rows[0][:2], some_text(rng, 1))
    rows[1] = (*rows[1][:2], some_text(rng, 100))
    assert len(rows) >= 32

    def texts(asked) -> list[str]:
        tickets = [engine.generate(RowRequest(version, text), GREEDY) for version, _, text in asked]
        return [ticket.result.result(120).text for ticket in tickets]

    wanted = [alone_text(llama, made, text, NEW) for _, made, text in rows]
    assert len(set(wanted)) > len(rows) - 3
    with Engine(llama, ROOM) as engine:
        assert texts(rows) == wanted
        order = rng.sample(range(len(rows)), len(rows))
        assert texts([rows[i] for i in order]) == [wanted[i] for i in order]
        assert set(texts([rows[5]] * 9)) == {wanted[5]}
        one, other = rows[0], rows[-1]
        swapped = [(*other[:2], one[2]), (*one[:2], other[2])]
        assert texts(swapped) == [alone_text(llama, made, text, NEW) for _, made, text in swapped]
        assert texts(swapped) != [wanted[0], wanted[-1]]


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox", "opt", "llama", "mistral", "qwen2", "gemma2", "phi3"])
def test_compiled_once_is_what_encoding_it_again_gives(family, tmp_path):
    """For causal models of every kind a soft prompt becomes keys and values; asked twice, it is answered the same."""
    lm = wrap(build(family), byte_tokenizer("causal"))
    rng = random.Random(9)
    prompts = [(saved(tmp_path, f"p{n}", one), one) for n in range(4) for one in [artefact(lm, "ahead", 1 + n, 40 + n)]]
    rows = [(*prompts[n % 4], some_text(rng, rng.randint(1, 8))) for n in range(16)]
    with Engine(lm, ROOM) as engine:
        first = engine.classify([RowRequest(version, text) for version, _, text in rows]).result(60)
        again = [engine.classify([RowRequest(version, text)]).result(60)[0] for version, _, text in rows]
        assert engine.load().prompts_compiled == 4
    moved = []
    for one, two, (_, made, text) in zip(first, again, rows, strict=True):
        wanted = alone_scores(lm, made, text).tolist()
        assert list(one.probabilities.values()) == pytest.approx(wanted, abs=1e-5)
        assert list(two.probabilities.values()) == pytest.approx(wanted, abs=1e-5)
        moved.append(abs(wanted[0] - alone_scores(lm, prompts[0][1], text)[0].item()))
    # Another prompt would be seen; in other families of the zoo the answer stands too far from it to tell.
    assert family not in ("gpt2", "llama") or max(moved) > 1e-4


def test_a_thousand_requests_compile_each_prompt_once(llama, tmp_path, monkeypatch):
    """Labels and texts, twenty prompts of several forms: one compilation of each that needs one, one read of each."""
    prompts = [saved(tmp_path, f"p{n}", artefact(llama, FORMS["causal"][n % 4], 2 + n % 5, n)) for n in range(20)]
    # What is the same at the front of every row: of "behind" that is <s> alone, and a prefix has been compiled already.
    leads = [n for n in range(20) if FORMS["causal"][n % 4] != "prefix"]
    compiled: list[int] = []
    inner = type(llama).states

    def counted(lm, inputs):
        compiled.append(len(inputs.read_BR))
        return inner(lm, inputs)

    monkeypatch.setattr(type(llama), "states", counted)
    with Engine(llama, ROOM) as engine:
        rng = random.Random(10)
        futures = [engine.classify([RowRequest(rng.choice(prompts), f"row {n}")]) for n in range(700)]
        tickets = [
            engine.generate(RowRequest(rng.choice(prompts), f"row {n}"), Sampling(max_tokens=2)) for n in range(300)
        ]
        assert all(future.result(120) for future in futures) and all(one.result.result(120) for one in tickets)
        assert engine.load().loads == 20
    assert sum(compiled) == len(leads)


def test_a_model_that_is_not_causal_compiles_nothing(tmp_path):
    """A soft prompt of an encoder is read anew with every row, since what it is depends on the text."""
    lm = load("foreword-tiny")
    version = saved(tmp_path, "p", artefact(lm, "ahead"))
    with Engine(lm, ROOM) as engine:
        for n in range(5):
            engine.classify([RowRequest(version, f"row {n}")]).result(60)
        assert engine.load().prompts_compiled == 0 and engine.load().loads == 1
