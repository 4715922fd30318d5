"""The engine's mixed batches give every row what it gets alone, by another road.

python -m pytest tests/serving/test_engine.py
"""

import random
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
import torch

from foreword.core import kv_cache
from foreword.core.values import Probe
from foreword.errors import ArtefactError, ConfigError, DataError, ModelError
from foreword.inference.ensemble import ensemble
from foreword.inference.scoring import score_rows
from foreword.methods.registry import train
from foreword.models.base import FrozenLM
from foreword.models.hf.tiny_checkpoints import byte_tokenizer
from foreword.models.load import load, wrap
from foreword.serving.engine import Engine, Room
from foreword.serving.protocol import Busy, Delta, RowRequest, Sampling
from tests.models.zoo import build
from tests.planted import planted_task
from tests.serving.alone import alone_scores, alone_text
from tests.serving.made import LABELS, TEMPLATES, artefact, saved

WORDS = "river garden window, teacher winter bread! horse letter music 42 island Straße 東京 naïve".split()
SMALL = Room(memory=2**22, compiled=2**20, cache=2**24, rows=4, waiting=500)


def wild(family: str) -> FrozenLM:
    """A causal model whose random weights are large enough that every prompt says something else."""
    model = build(family)
    return wrap(model, byte_tokenizer("causal"))


@pytest.fixture(scope="module")
def llama() -> FrozenLM:
    torch.manual_seed(0)
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=263, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=256, initializer_range=0.3, pad_token_id=1,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    return wrap(model, byte_tokenizer("causal"))


def prompts(lm, root, count: int, rng: random.Random):
    """Versions of every form, their lengths and numbers drawn."""
    forms = [*TEMPLATES[lm.kind]]
    made = [
        artefact(lm, forms[n % len(forms)], rng.choice([1, 3, 5, 8, 21]), rng.randrange(10**6)) for n in range(count)
    ]
    return [saved(root, f"p{n}", one) for n, one in enumerate(made)]


def text_of(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))


@pytest.mark.parametrize("name", ["foreword-tiny", "foreword-tiny-causal", "wild"])
def test_labels_in_mixed_batches_are_those_of_rows_alone(name, llama, tmp_path):
    lm = llama if name == "wild" else load(name)
    rng = random.Random(1)
    versions = prompts(lm, tmp_path, 12, rng)
    with Engine(lm, SMALL) as engine:
        asked = [RowRequest(rng.choice(versions), text_of(rng)) for _ in range(60)]
        futures = [engine.classify(asked[i : i + 5]) for i in range(0, 60, 5)]
        found = [one for future in futures for one in future.result(60)]
        for one, row in zip(found, asked, strict=True):
            wanted = alone_scores(lm, engine.bank.entry(row.version).artefact, row.text)
            assert list(one.probabilities) == list(LABELS)
            assert one.label == LABELS[int(wanted.argmax())]
            assert max(abs(a - b) for a, b in zip(one.probabilities.values(), wanted.tolist(), strict=True)) < 1e-5
        assert engine.load().batches < 60
        # Another prompt, another answer: the comparison could fail.
        other = [alone_scores(lm, engine.bank.entry(versions[0]).artefact, row.text)[0] for row in asked]
        apart = [abs(float(a) - b.probabilities["no"]) for a, b in zip(other, found, strict=True)]
        assert max(apart) > 1e-3 if name == "wild" else max(apart) > 1e-6


@pytest.mark.parametrize("shared", [10**6, 2], ids=["apart", "shared"])
def test_texts_that_join_and_leave_are_those_of_the_library_alone(llama, tmp_path, shared, monkeypatch):
    """Forty rows through four places: prompts of every form, any length, asked in bursts, token for token; each row
    with its own copy of its prompt's keys and values, or one for the rows that share it."""
    kept: set[int] = set()

    def of(prefix):
        kept.add(prefix.length)
        return made_of(prefix)

    made_of = kv_cache.Trunk.of
    monkeypatch.setattr(kv_cache.Trunk, "of", of)
    monkeypatch.setattr(kv_cache, "SHARED", shared)
    rng = random.Random(2)
    versions = prompts(llama, tmp_path, 12, rng)
    with Engine(llama, SMALL) as engine:
        asked = [(rng.choice(versions), text_of(rng), rng.randint(1, 24)) for _ in range(40)]
        tickets = []
        for version, text, new in asked:
            tickets.append(engine.generate(RowRequest(version, text), Sampling(max_tokens=new, temperature=0.0)))
            if rng.random() < 0.2:
                time.sleep(0.01)
        found = [ticket.result.result(120) for ticket in tickets]
        made = {version: engine.bank.entry(version).artefact for version in versions}
    wanted = [alone_text(llama, made[version], text, new) for version, text, new in asked]
    assert [one.text for one in found] == wanted
    assert bool(kept) == (shared == 2)
    assert len({one.text for one in found}) > 30
    for one, (_, _, new) in zip(found, asked, strict=True):
        assert one.finish == ("length" if len(one.pieces) == new else "stop")
    swapped = [alone_text(llama, made[versions[0]], text, new) for _, text, new in asked]
    assert sum(a != b for a, b in zip(swapped, wanted, strict=True)) > 25


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma3", "qwen3"])
def test_families_with_windows_and_positions_of_their_own(family, tmp_path):
    lm, rng = wild(family), random.Random(3)
    versions = [saved(tmp_path, form, artefact(lm, form, length=4, seed=5)) for form in ("bare", "behind", "prefix")]
    with Engine(lm, replace(SMALL, rows=3)) as engine:
        asked = [(version, word) for version in versions for word in ("ab", "c d")]
        rng.shuffle(asked)
        tickets = [engine.generate(RowRequest(v, t), Sampling(max_tokens=9, temperature=0.0)) for v, t in asked]
        found = [ticket.result.result(60).text for ticket in tickets]
        made = {version: engine.bank.entry(version).artefact for version in versions}
    assert found == [alone_text(lm, made[v], t, 9) for v, t in asked]


def test_what_is_drawn_does_not_depend_on_who_is_there(llama, tmp_path):
    rng = random.Random(4)
    versions = prompts(llama, tmp_path, 6, rng)
    asked = [
        (RowRequest(rng.choice(versions), text_of(rng)), Sampling(max_tokens=12, seed=n, top_p=0.9)) for n in range(12)
    ]
    with Engine(llama, SMALL) as engine:
        tickets = [engine.generate(row, sampling) for row, sampling in asked]
        together = [t.result.result(60).text for t in tickets]
        alone = [engine.generate(row, sampling).result.result(60).text for row, sampling in asked]
        other = [engine.generate(row, replace(s, seed=s.seed + 50)).result.result(60).text for row, s in asked]
    assert together == alone
    assert together != other


def test_deltas_add_up_and_stop_words_end_a_text(llama, tmp_path):
    version = saved(tmp_path, "p", artefact(llama, "ahead"))
    with Engine(llama, SMALL) as engine:
        whole = engine.generate(RowRequest(version, "garden"), Sampling(max_tokens=30, temperature=0.0)).result.result(
            60
        )
        stop = whole.text[6:8]
        deltas: list[Delta] = []
        sampling = Sampling(max_tokens=30, temperature=0.0, stop=(stop,), logprobs=2)
        found = engine.generate(RowRequest(version, "garden"), sampling, deltas.append).result.result(60)
    assert "".join(d.text for d in deltas) == found.text == whole.text.partition(stop)[0]
    assert [d.finish for d in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert sum(len(d.pieces) for d in deltas) == len(found.pieces)
    for piece in found.pieces:  # greedy: what was chosen is the likeliest
        assert piece.logprob == pytest.approx(piece.likeliest[0][1], abs=1e-6)
        assert piece.likeliest[0][1] >= piece.likeliest[1][1]


def test_tiers_stay_within_their_bytes_and_answers_stay_right(llama, tmp_path):
    """Thirty prompts where five fit in memory and three compiled."""
    rng = random.Random(5)
    versions = prompts(llama, tmp_path, 30, rng)
    room = Room(memory=5 * 6000, compiled=3 * 20 * 2 * 3 * 2 * 12 * 4, cache=2**24, rows=4)
    with Engine(llama, room) as engine:
        for _ in range(4):
            rng.shuffle(versions)
            rows = [RowRequest(version, text_of(rng)) for version in versions]
            futures = [engine.classify([row]) for row in rows]
            for future, row in zip(futures, rows, strict=True):
                wanted = alone_scores(llama, engine.bank.entry(row.version).artefact, row.text).tolist()
                assert list(future.result(60)[0].probabilities.values()) == pytest.approx(wanted, abs=1e-5)
            load = engine.load()
            assert load.bytes_in_memory <= room.memory
            assert load.bytes_compiled <= room.compiled
        assert load.evictions > 60
        assert load.loads > 60


def test_a_prompt_is_read_and_compiled_once(llama, tmp_path, monkeypatch):
    versions = [saved(tmp_path, f"p{n}", artefact(llama, "ahead", seed=n)) for n in range(3)]
    with Engine(llama, SMALL) as engine:
        compiled = []
        inner = type(llama).states
        monkeypatch.setattr(
            type(llama), "states", lambda lm, inputs: compiled.append(len(inputs.read_BR)) or inner(lm, inputs)
        )
        for n in range(200):
            engine.classify([RowRequest(versions[n % 3], f"row {n}")]).result(60)
        engine.generate(RowRequest(versions[0], "row"), Sampling(max_tokens=2)).result.result(60)
        assert sum(compiled) == 3
        assert engine.load().loads == 3


def test_one_bad_row_stops_no_other(llama, tmp_path):
    good = saved(tmp_path, "good", artefact(llama, "ahead"))
    folder = saved(tmp_path, "bad", artefact(llama, "ahead")).folder
    (folder / "prompt.safetensors").write_bytes(b"not tensors")
    bad = replace(good, name="bad", folder=folder)
    probe = replace(artefact(llama, "bare"), value=Probe(torch.zeros(2, 32), torch.zeros(2), "mean"))
    other = saved(
        tmp_path,
        "other",
        replace(artefact(llama, "ahead"), fingerprint={**artefact(llama, "ahead").fingerprint, "weights": "x"}),
    )
    with Engine(llama, SMALL) as engine:
        cases = [
            (RowRequest(bad, "text"), ArtefactError, "hash differs"),
            (RowRequest(saved(tmp_path, "probe", probe), "text"), ArtefactError, "form probe"),
            (RowRequest(other, "text"), ArtefactError, "other weights"),
            (RowRequest(good, ""), DataError, "empty"),
            (RowRequest(good, fields={"txt": "a"}), DataError, "lacks text"),
            (RowRequest(good, messages=(("system", "x"), ("user", "y"))), ConfigError, "own instruction"),
            (RowRequest(None, "text"), ConfigError, "no labels"),
        ]
        for row, kind, match in cases:
            wrong, right = engine.classify([row]), engine.classify([RowRequest(good, "text")])
            with pytest.raises(kind, match=match):
                wrong.result(60)
            assert right.result(60)[0].label in LABELS
        for sampling, match in [
            (Sampling(max_tokens=0), "max_tokens"),
            (Sampling(top_p=0.0), "top_p"),
            (Sampling(temperature=-1.0), "temperature"),
            (Sampling(stop=("",)), "stop"),
            (Sampling(max_tokens=300), "leaves no room"),
        ]:
            with pytest.raises(ConfigError, match=match):
                engine.generate(RowRequest(good, "text"), sampling).result.result(60)
        with pytest.raises(ConfigError, match="no chat template"):
            engine.generate(RowRequest(None, messages=(("user", "x"),)), Sampling()).result.result(60)
        assert engine.generate(RowRequest(None, "text"), Sampling(max_tokens=3)).result.result(60).finish


def test_a_pass_that_fails_is_tried_row_by_row(llama, tmp_path, monkeypatch):
    """What goes wrong in the model for one row is told to that row alone."""
    import foreword.serving.classification as module

    version = saved(tmp_path, "p", artefact(llama, "ahead"))
    inner = module.score

    def fails(lm, rows, bank, task_B):
        if any(len(row.ids_S) > 60 for row in rows):
            raise RuntimeError("planted")
        return inner(lm, rows, bank, task_B)

    monkeypatch.setattr(module, "score", fails)
    with Engine(llama, SMALL) as engine:
        hold = engine.generate(RowRequest(version, "hold the engine"), Sampling(max_tokens=40))
        futures = [engine.classify([RowRequest(version, "x" * (120 if n == 3 else 5))]) for n in range(6)]
        for n, future in enumerate(futures):
            if n == 3:
                with pytest.raises(ModelError, match="planted"):
                    future.result(60)
            else:
                assert future.result(60)[0].label in LABELS
        hold.result.result(60)


def test_a_full_engine_says_when_to_come_back(llama, tmp_path):
    version = saved(tmp_path, "p", artefact(llama, "ahead"))
    with Engine(llama, replace(SMALL, waiting=3, rows=1)) as engine:
        first = [engine.generate(RowRequest(version, "x"), Sampling(max_tokens=60)) for _ in range(3)]
        with pytest.raises(Busy, match="ask again") as caught:
            engine.generate(RowRequest(version, "x"), Sampling())
        assert 1 <= caught.value.retry_after <= 60
        with pytest.raises(Busy):
            engine.classify([RowRequest(version, "x")])
        for ticket in first:
            ticket.result.result(60)
        assert engine.classify([RowRequest(version, "x")] * 3).result(60)


def test_a_cancelled_text_gives_its_place_away(llama, tmp_path):
    version = saved(tmp_path, "p", artefact(llama, "ahead"))
    with Engine(llama, replace(SMALL, rows=1)) as engine:
        begun = threading.Event()
        greedy = Sampling(max_tokens=150, temperature=0.0)
        endless = next(
            text
            for text in WORDS * 9
            if engine.generate(RowRequest(version, text), greedy).result.result(60).finish == "length"
        )
        long = engine.generate(RowRequest(version, endless), greedy, lambda delta: begun.set())
        waiting = engine.generate(RowRequest(version, endless), replace(greedy, max_tokens=3))
        assert begun.wait(60)
        long.cancel()
        assert len(waiting.result.result(60).pieces) == 3
        with pytest.raises(CancelledError):
            long.result.result(0)
        until = time.monotonic() + 60  # the answer comes a moment before its place is free
        while engine.load().generating and time.monotonic() < until:
            time.sleep(0.001)
        assert engine.load().generating == 0


@pytest.mark.parametrize("finish", [True, False])
def test_closing_ends_or_tells_what_was_accepted(llama, tmp_path, finish):
    version = saved(tmp_path, "p", artefact(llama, "ahead"))
    engine = Engine(llama, replace(SMALL, rows=2))
    tickets = [engine.generate(RowRequest(version, f"x{n}"), Sampling(max_tokens=40)) for n in range(8)]
    labels = engine.classify([RowRequest(version, "x")] * 20)
    engine.close(finish=finish)
    told = 0
    for result in (*(t.result for t in tickets), labels):
        assert result.done(), "nothing is left without an answer"
        told += isinstance(result.exception(), Busy)
    assert told == 0 if finish else told > 0
    with pytest.raises(Busy, match="stopping"):
        engine.classify([RowRequest(version, "x")])
    engine.close()


def test_listeners_that_fail_end_their_own_text_alone(llama, tmp_path):
    version = saved(tmp_path, "p", artefact(llama, "ahead"))

    def fails(delta: Delta) -> None:
        raise OSError("gone")

    with Engine(llama, SMALL) as engine:
        one = engine.generate(RowRequest(version, "x"), Sampling(max_tokens=5), fails)
        other = engine.generate(RowRequest(version, "x"), Sampling(max_tokens=5))
        assert other.result.result(60)
        with pytest.raises(ModelError, match="gone"):
            one.result.result(60)


def test_a_cache_too_small_for_its_rows_is_refused_before_it_starts(llama):
    with pytest.raises(ModelError, match="larger cache"):
        Engine(llama, replace(SMALL, cache=1000))


def test_masked_models_label_and_do_not_write(tmp_path):
    lm = load("foreword-tiny")
    version = saved(tmp_path, "p", artefact(lm, "behind"))
    with Engine(lm, SMALL) as engine:
        assert engine.classify([RowRequest(version, "x")]).result(60)
        with pytest.raises(ConfigError, match="cannot continue"):
            engine.generate(RowRequest(version, "x"), Sampling()).result.result(60)


@pytest.mark.parametrize("kind", ["foreword-tiny", "foreword-tiny-causal"])
def test_demonstrations_and_calibration_are_served_as_they_were_measured(kind, tmp_path):
    """A few-shot artefact answers what `score_rows` says, in a mixed batch; what takes two prompts a row is refused."""
    lm = load(kind)
    task = planted_task(7, train=12, validation=6, test=10)
    options = {
        "few-shot": {"calibrate": "batch", "temperature": True, "demos": 2},
        "manual": {"calibrate": "contextual"},
    }
    made = {name: train(lm, task, name, **more).artefact for name, more in options.items()}
    versions = {name: saved(tmp_path, name, one) for name, one in made.items()}
    texts = [row.fields["text"] for row in task.test]
    with Engine(lm, SMALL) as engine:
        asked = [RowRequest(versions[name], text) for text in texts for name in versions]
        judged = iter(engine.classify(asked).result(60))
        wanted = {name: score_rows(lm, [(one, task.test)])[0].softmax(-1) for name, one in made.items()}
        for n in range(len(texts)):
            for name in versions:
                found = next(judged).probabilities
                assert list(found.values()) == pytest.approx(wanted[name][n].tolist(), abs=1e-5)
        near = train(lm, task, "few-shot-knn").artefact
        for name, other in (("near", near), ("both", ensemble(made))):
            with pytest.raises(ArtefactError, match="more than one prompt before a row"):
                engine.check(other)
            with pytest.raises(ArtefactError, match="serve one of its members"):
                engine.classify([RowRequest(saved(tmp_path, name, other), "x")]).result(60)
