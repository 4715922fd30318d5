"""python -m pytest tests/recipes/test_embedded_model.py"""

import json
import math
import random
import signal
from pathlib import Path

import embedded_model as recipe
import embedded_model_losses as losses
import embedded_model_text as text
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from foreword.models.base import Inputs
from foreword.models.hf.loading import EMBEDDED
from foreword.models.load import load

CONTEXT = 64
PLAN = text.Plan(seed=3, context=CONTEXT, tokens=16 * CONTEXT)
CLS, SEP, MASK = text.CLS, text.SEP, text.MASK
DOCUMENT = 'The  cat [MASK] sat.\nno stop here\n\n"It costs 3.5 pounds." Why? dr. no knows.'


def documents(count: int, seed: int) -> list[str]:
    """Sentences of one rule, which both objectives can learn: who, what colour, which thing."""
    rng = random.Random(seed)
    things = {"red": "car house", "blue": "boat river", "green": "tree garden"}
    found = []
    for _ in range(count):
        colours = [rng.choice(list(things)) for _ in range(rng.randint(1, 9))]
        found.append(" ".join(f"She has a {c} {rng.choice(things[c].split())}." for c in colours))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, a validation text and the weights to start from."""
    folder = tmp_path_factory.mktemp("embedded")
    for name, texts in (("corpus", [DOCUMENT, *documents(350, 0)]), ("valid", documents(60, 1))):
        lines = [json.dumps({"text": t}) for t in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=30522, max_position_embeddings=CONTEXT, initializer_range=0.05, **sizes)
    BertForMaskedLM(config).save_pretrained(folder / "start")
    return folder


@pytest.fixture(scope="module")
def stream(folder):
    return text.stream_of(folder / "corpus.jsonl", folder / "pieces")


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    given = {"start": folder / "start", "corpus": folder / "corpus.jsonl", "valid": folder / "valid.jsonl"}
    fixed = {"out": folder / out, "tokens": PLAN.tokens, "warmup": 2, "log-every": 2, "check-rows": 2, "rate": 0.01}
    pairs = [str(part) for name, value in (given | fixed).items() for part in (f"--{name}", value)]
    return [*pairs, "--device", "cpu", *more]


def checkpoint(folder: Path, out: str) -> bytes:
    return (folder / out / "checkpoint.safetensors").read_bytes()


def log(folder: Path, out: str) -> list[dict]:
    return [json.loads(line) for line in (folder / out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(folder):
    """A run without interruption, and what it exports."""
    assert recipe.main(arguments(folder, "whole", "--steps", "10")) == 0
    assert recipe.main(arguments(folder, "whole", "--export", str(folder / "model"))) == 0
    return folder / "model"


def test_the_pieces_are_those_of_whole_documents_and_sentences_are_marked(folder, stream):
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    expected = []
    for document in [DOCUMENT, *documents(350, 0)]:
        expected += [*tokenizer(document, add_special_tokens=False, split_special_tokens=True)["input_ids"], SEP]
    assert (stream & ~np.uint16(text.BEGINS)).tolist() == expected
    assert MASK not in expected
    begins = np.flatnonzero(stream[: expected.index(SEP)] & text.BEGINS)
    words = tokenizer.convert_ids_to_tokens([expected[i] for i in begins])
    assert words == ["the", "no", '"', "why"]
    again = text.stream_of(folder / "corpus.jsonl", folder / "pieces")
    assert again.filename == stream.filename


def test_a_pass_reads_every_chunk_once(stream):
    steps = PLAN.steps_a_pass(len(stream))
    passes = [text._order(PLAN, len(stream), number) for number in (0, 1)]
    for begins in passes:
        assert len(begins) == steps * PLAN.chunks
        assert (np.diff(np.sort(begins)) == CONTEXT).all()
        assert begins.max() + CONTEXT < len(stream)
    assert len(stream) - len(passes[0]) * CONTEXT < (PLAN.chunks + 3) * CONTEXT
    assert passes[0].tolist() != passes[1].tolist()


def steps_of(stream, steps: range) -> list:
    return [batch for step in steps for batch in text.batches_of(PLAN, stream, step)]


def test_rows_are_windows_of_the_text_in_a_third_of_the_pieces_as_long_as_the_context(stream):
    plain = " ".join(map(str, stream & ~np.uint16(text.BEGINS)))
    lengths: dict[int, int] = {}
    endings = {"whole": 0, "cut": 0, "none": 0}
    aligned = rows = 0
    she = AutoTokenizer.from_pretrained(EMBEDDED).convert_tokens_to_ids("she")
    stops = {int(i) for i in np.flatnonzero(stream & text.BEGINS)}
    last = {int(stream[i - 1]) & ~text.BEGINS for i in stops if i} | {SEP}
    for batch in steps_of(stream, range(40)):
        ids_BS = batch.ids_BS.clone()
        if not batch.causal:
            ids_BS.view(-1)[batch.place_N] = batch.target_N
        lengths[ids_BS.shape[1]] = lengths.get(ids_BS.shape[1], 0) + ids_BS.numel()
        for row in ids_BS.tolist():
            kept = [i for i in row if i != text.PAD]
            assert row[: len(kept)] == kept and kept[0] == CLS and CLS not in kept[1:]
            body = kept[1:-1] if kept[-1] == SEP else kept[1:]
            assert not body or f" {' '.join(map(str, body))} " in f" {plain} "
            rows += len(row) >= 16
            if not batch.causal:
                ending = "none" if kept[-1] != SEP else "whole" if len(kept) < len(row) else "cut"
                endings[ending] += 1
                assert ending != "whole" or kept[-2] in last
            else:
                assert len(kept) == len(row)
            aligned += len(row) >= 16 and body[:1] == [she]  # shorter rows may not reach back to a sentence's start
    assert lengths[CONTEXT] / sum(lengths.values()) == pytest.approx(6 / 16) and len(lengths) == 5
    assert min(endings.values()) > 0.1 * sum(endings.values())
    assert 0.75 <= aligned / rows < 0.95


def test_masks_hide_a_fifth_and_causal_rows_predict_what_follows(stream):
    batches = steps_of(stream, range(30))
    masked, causal = ([b for b in batches if b.causal == which] for which in (False, True))
    assert len(masked) == len(causal)
    for batch in masked:
        flat = batch.ids_BS.flatten()
        assert ((flat == MASK).nonzero().flatten() == batch.place_N).all()
        assert not np.isin(batch.target_N, (text.PAD, CLS, SEP, MASK)).any()
    hidden = sum(len(b.place_N) for b in masked)
    shown = sum(int((b.ids_BS > MASK).sum()) for b in masked)
    assert hidden / (hidden + shown) == pytest.approx(0.2, abs=0.01)
    for batch in causal:
        follows = batch.ids_BS.flatten()[batch.place_N + 1]
        assert (follows == batch.target_N).all() and len(batch.place_N) == batch.ids_BS[:, 1:].numel()


def test_rows_do_not_depend_on_how_many_pass_at_once(stream):
    for step in (4, 5):
        few, many = (text.batches_of(PLAN, stream, step, pieces) for pieces in (128, 4096))
        assert len(few) > len(many) == 5
        for length in (64, 32, 16, 8, 4):
            ids_BS = [torch.cat([b.ids_BS for b in some if b.ids_BS.shape[1] == length]) for some in (few, many)]
            assert torch.equal(*ids_BS)


def test_the_output_layer_is_cross_entropy():
    torch.manual_seed(1)
    leaves = [torch.randn(1200, 6), torch.randn(40, 6), torch.randn(40)]
    target_N = torch.randint(0, 40, (1200,))
    grad_VD, grad_V = torch.ones(40, 6), torch.ones(40)
    loss, grad_ND = losses.backward_of_output(*leaves, target_N, grad_VD, grad_V, 7)
    hidden_ND, weight_VD, bias_V = (leaf.requires_grad_() for leaf in leaves)
    expected = torch.nn.functional.cross_entropy(hidden_ND @ weight_VD.T + bias_V, target_N, reduction="sum")
    (expected / 7).backward()
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.allclose(grad_ND, hidden_ND.grad, atol=1e-5)
    assert torch.allclose(grad_VD - 1, weight_VD.grad, atol=1e-4)
    assert torch.allclose(grad_V - 1, bias_V.grad, atol=1e-4)


def test_causal_rows_see_only_what_was_before_and_masked_rows_everything(folder):
    model = recipe.read_model(folder / "start", torch.float32, torch.device("cpu"))
    ids_BS = torch.randint(1000, 2000, (3, 20))
    changed_BS = ids_BS.clone()
    changed_BS[:, 12] = 2500
    for causal in (True, False):
        place_N = torch.arange(60)
        hidden, other = (
            losses.hidden_at(model, text.Batch(i, place_N, place_N, causal)).view(3, 20, -1)
            for i in (ids_BS, changed_BS)
        )
        moved_S = (hidden - other).abs().amax((0, 2)) > 1e-6
        assert moved_S.tolist() == ([False] * 12 + [True] * 8 if causal else [True] * 20)


def test_padding_is_not_seen(folder):
    model = recipe.read_model(folder / "start", torch.float32, torch.device("cpu"))
    short_BS = torch.randint(1000, 2000, (2, 9))
    long_BS = torch.nn.functional.pad(short_BS, (0, 5), value=text.PAD)
    place_N = torch.tensor([3, 8])
    short = losses.hidden_at(model, text.Batch(short_BS, place_N, place_N, False))
    long = losses.hidden_at(model, text.Batch(long_BS, place_N, place_N, False))
    assert torch.allclose(short, long, atol=1e-5)


def test_both_losses_fall_far_below_what_needs_no_context(folder, stream):
    assert recipe.main(arguments(folder, "long", "--steps", "70")) == 0
    steps = [line for line in log(folder, "long") if "masked" in line]
    often_V = np.bincount(stream & ~np.uint16(text.BEGINS)) / len(stream)
    alone = -sum(p * math.log(p) for p in often_V if p)  # of a model that knows how often a piece is, and no context
    for kind in ("masked", "causal"):
        assert steps[0][kind] > 0.9 * math.log(30522)
        assert np.mean([line[kind] for line in steps[-5:]]) < 0.8 * alone


def test_the_learning_rate_of_a_step():
    rates = [recipe.rate_of(step, 100, 0.5, 10) for step in range(101)]
    assert rates[0] == 0.05 and rates[9:51] == [0.5] * 42 and rates[75] == pytest.approx(0.25) and rates[100] == 0.0
    assert rates == sorted(rates[:50]) + sorted(rates[50:], reverse=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_ends_in_the_same_bytes(folder, trained, monkeypatch, number):
    out = f"stopped-{number}"
    update, calls = recipe.State.update, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 5:
            signal.raise_signal(number)
        return update(*given)

    before = signal.getsignal(number)
    monkeypatch.setattr(recipe.State, "update", interrupted)
    assert recipe.main(arguments(folder, out, "--steps", "10")) == 0
    assert signal.getsignal(number) is before and len(calls) == 5
    monkeypatch.undo()
    assert checkpoint(folder, out) != checkpoint(folder, "whole")
    assert recipe.main(arguments(folder, out, "--steps", "10", "--minutes", "0")) == 0
    assert [line["begin"] for line in log(folder, out) if "begin" in line] == [0, 5]
    assert recipe.main(arguments(folder, out, "--steps", "10")) == 0
    assert [line["begin"] for line in log(folder, out) if "begin" in line] == [0, 5, 6]
    assert checkpoint(folder, out) == checkpoint(folder, "whole")


def test_a_checkpoint_of_another_run_is_refused(folder, trained, capsys):
    assert recipe.main(arguments(folder, "whole", "--steps", "30", "--seed", "1")) == 2
    assert "is of another run" in capsys.readouterr().err
    assert recipe.main(arguments(folder, "nowhere", "--export", str(folder / "none"))) == 2
    assert "There is no checkpoint" in capsys.readouterr().err
    assert recipe.main(arguments(folder, "new", "--tokens", "1000")) == 2
    assert "--tokens is 1000; a step takes a multiple of 1024." in capsys.readouterr().err


def log_probability(lm, ids_BS: torch.Tensor, batch) -> torch.Tensor:
    """By Foreword's own reading of the folder: of the targets, at the batch's places."""
    B, S = ids_BS.shape
    position_BS = torch.arange(S).expand(B, S)
    hidden_BSD = lm.hidden_at(Inputs(lm.embed(ids_BS), torch.ones(B, S, dtype=torch.bool), position_BS, position_BS))
    hidden_ND = hidden_BSD.flatten(0, 1)[batch.place_N]
    piece_N = lm.piece_logits(hidden_ND, torch.arange(lm.dims.vocab)).gather(1, batch.target_N[:, None])[:, 0]
    return piece_N - lm.log_normaliser(hidden_ND)


def test_the_export_is_read_as_both_kinds_and_scores_as_it_was_trained(folder, trained, stream):
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in trained.iterdir()} == names
    assert str(folder) not in (trained / "config.json").read_text()
    with (
        safe_open(str(trained / "model.safetensors"), "pt") as file,
        safe_open(str(EMBEDDED / "model.safetensors"), "pt") as embedded,
    ):
        layers = {name.replace("layer.1.", "layer.0.") for name in file.keys()}  # noqa: SIM118
        assert {n for n in embedded.keys() if "layer." not in n or "layer.0." in n} == layers  # noqa: SIM118
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    model = recipe.read_model(trained, torch.float32, torch.device("cpu"))
    for step, kind in enumerate(("masked", "causal")):
        lm = load(trained, kind=kind, dtype="float32")
        batch = text.batches_of(PLAN, stream, step)[0]
        assert (batch.causal == (kind == "causal") and int((batch.ids_BS == text.PAD).sum()) == 0) or kind == "masked"
        ids_BS = torch.where(batch.ids_BS == text.PAD, MASK, batch.ids_BS)
        batch = text.Batch(ids_BS, batch.place_N, batch.target_N, batch.causal)
        loss_N, _ = losses.losses(model, batch)
        assert torch.allclose(loss_N, -log_probability(lm, ids_BS, batch), atol=1e-4)
        other = text.Batch(ids_BS, batch.place_N, batch.target_N, not batch.causal)
        assert not torch.allclose(losses.losses(model, other)[0], loss_N, atol=1e-2)


def test_measuring(folder, trained, capsys):
    assert recipe.main(arguments(folder, "whole", "--measure", str(trained), "--rows", "4")) == 0
    found = json.loads(capsys.readouterr().out)
    causal = found["causal, 64 pieces"]
    lm = load(trained, kind="causal", dtype="float32")
    valid = text.stream_of(folder / "valid.jsonl", folder / "whole").astype(np.int64) & ~text.BEGINS
    rows = [valid[i * ((len(valid) - CONTEXT) // 4) :][:CONTEXT] for i in range(4)]
    ids_BS = torch.from_numpy(np.stack(rows))
    ids_BS[:, 0] = CLS
    loss_N = -log_probability(lm, ids_BS, text.causal_batch(ids_BS.numpy()))
    assert causal["loss"] == pytest.approx(float(loss_N.mean()), abs=1e-4)
    assert causal["perplexity"] == pytest.approx(math.exp(causal["loss"]))
    late = loss_N.view(4, CONTEXT - 1)[:, 47:].mean()
    assert causal["loss_by_position"]["48-95"] == pytest.approx(float(late), abs=1e-4)
    assert 0 < found["masked, 64 pieces"]["accuracy"] <= 1
