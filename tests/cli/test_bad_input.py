"""Every mistake is one line that says what to do, and exit code 2. Run: python -m pytest tests/cli/test_bad_input.py"""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

TINY = ("--model", "foreword-tiny")


def rows(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def train(foreword, data, tmp_path):
    """Train prompt-tuning for a step into tmp_path/out; keyword arguments replace what is given."""

    def call(*more, method="prompt-tuning", model="foreword-tiny", source=data, steps=1):
        options = ("-o", f"steps={steps}", "-o", "length=2") if steps else ()
        command = ("train", method, "--model", model, "--data", source, "--out", tmp_path / "out")
        return foreword(*command, *options, *more)

    return call


def refused(result, *said):
    """Exit code 2 and one line, which says all of `said`."""
    assert result.code == 2, result.err
    assert result.out == ""
    for part in said:
        assert str(part) in result.error, result.error


def test_missing_file(train, tmp_path):
    refused(train(source=tmp_path / "none.jsonl"), "none.jsonl does not exist")


def test_unreadable_file(train, tmp_path, monkeypatch):
    path = rows(tmp_path / "x.jsonl", {"text": "a", "label": "b"})

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    refused(train(source=path), "x.jsonl cannot be read", "Permission denied")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a", "label": "x"}\n{"text": "b", "label"\n', "line 2"),
        (b'{"text": "a", "label": "x"}\n[1, 2]\n', "line 2"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"", "no rows"),
    ],
)
def test_broken_file(train, tmp_path, content, said):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    refused(train(source=path), "x.jsonl", said)


def test_wrong_column(train):
    refused(train("--text", "sentence"), "no column 'sentence'", "text, label")
    refused(train("--label", "gold"), "no column 'gold'", "text, label")
    refused(train("--template", "{sentence} {mask}"), "'sentence'", "text")


def test_empty_text_names_its_row(train, tmp_path):
    path = rows(tmp_path / "x.jsonl", {"text": "a", "label": "x"}, {"text": "  ", "label": "y"})
    refused(train(source=path), "x.jsonl, row 2", "'text' is empty")


def test_label_that_training_lacks_names_its_row(train, data, tmp_path):
    folder = tmp_path / "d"
    shutil.copytree(data, folder)
    rows(folder / "test.jsonl", {"text": "a", "label": "good"}, {"text": "b", "label": "odd"})
    refused(train(source=folder), "test.jsonl, row 2", "'odd'", "'bad', 'good'")


def test_one_class_only(train, tmp_path):
    path = rows(tmp_path / "x.jsonl", *[{"text": f"text {i}", "label": "good"} for i in range(40)])
    refused(train(source=path), "one label only (good)")


def test_too_few_rows_for_the_shots(train):
    refused(train("--shots", "17"), "34", "has 32", "16 or fewer")


def test_prompt_longer_than_the_context(train):
    refused(train("-o", "length=600", steps=0), "600", "shorte")
    refused(train("-o", "length=600", method="prefix-tuning", steps=0), "600", "shorte")
    refused(train("--max-length", "4"), "room for 4")


def test_long_text_that_may_not_be_cut(train, tmp_path):
    path = rows(tmp_path / "x.jsonl", *[{"text": "long " * 300, "label": label} for label in "ab" * 40])
    refused(train("--truncate", "error", source=path), "x.jsonl, row", "512")


def test_model_that_is_not_in_the_cache(train, tmp_path):
    refused(train(model="nobody/nothing"), "nobody/nothing")
    refused(train(model=tmp_path), str(tmp_path))


def test_model_without_a_pad_token(train, tmp_path):
    """No error at all: padding is masked, so any id will do."""
    from foreword.models.hf.tiny_checkpoints import byte_tokenizer, random_model

    tokenizer = byte_tokenizer("causal")
    random_model("causal", tokenizer, 0, 16, 1, 256).save_pretrained(tmp_path / "m")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "m")
    found = train(model=tmp_path / "m")
    assert found.code == 0, found.err


def test_loss_that_is_not_a_number(train, tmp_path):
    found = train("-o", "optimizer=adamw", "-o", "learning_rate=1e20", "-o", "clip=0", steps=6)
    refused(found, "not a number", "learning_rate")
    assert not (tmp_path / "out").exists()


def test_out_of_memory_halves_the_batch(train, monkeypatch, capsys):
    """A forward pass of more than 40 rows fails; training goes on with less and says so once."""
    from foreword.models.hf.lm import HFLM

    real = HFLM.hidden_at

    def small(self, inputs, prefix=None):
        if inputs.embed_BSD.shape[0] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(self, inputs, prefix)

    monkeypatch.setattr(HFLM, "hidden_at", small)
    found = train()
    assert found.code == 0, found.err
    said = [line for line in found.err.splitlines() if "out of memory" in line.lower()]
    assert said
    assert "tokens" in said[0]


def test_out_of_memory_with_one_row(train, monkeypatch):
    from foreword.models.hf.lm import HFLM

    def never(self, inputs, prefix=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(HFLM, "hidden_at", never)
    found = train()
    assert found.code == 2
    assert "ut of memory" in found.error


def test_options(train, foreword, data, tmp_path):
    refused(train("-o", "num_virtual_tokens=20"), "num_virtual_tokens", "length")
    refused(train("-o", "lenght=20"), "lenght", "Did you mean length")
    refused(train("-o", "length"), "-o 'length' is not KEY=VALUE")
    refused(train("-o", "length=many"), "'many'", "whole number")
    refused(train("-o", "length=0"), "length='0'", "at least 1")
    refused(train("-o", "learning_rate=nan"), "learning_rate")
    refused(train("-o", "init=best"), "'best'", "labels")
    refused(train("-o", "lora.rank=8"), "'lora'", "prompt-tuning")
    refused(train(method="promt-tuning"), "'promt-tuning' is not a method", "prompt-tuning")
    compare = ("compare", *TINY, "--data", data, "--out", tmp_path / "x")
    refused(foreword(*compare, "--methods", "manual,nothing"), "'nothing' is not a method")
    refused(foreword(*compare, "--methods", "manual", "--seeds", "few"), "--seeds 'few'")
    refused(foreword(*compare, "--methods", "manual", "--seeds", "0"), "--seeds 0")
    refused(foreword(*compare, "--methods", "manual", "-o", "lora.rank=2"), "'lora'")
    assert not (tmp_path / "x").exists()


def test_command_line(foreword):
    refused(foreword("train", "prompt-tuning"), "Missing option", "foreword train --help")
    refused(foreword("trian"), "trian", "foreword --help")
    refused(foreword("tasks", "builtin:nothing"), "'nothing'", "sentiment")
    refused(foreword("methods", "nothing"), "'nothing'", "prompt-tuning")
    refused(foreword("demo", "--task", "nothing"), "'nothing'", "sentiment")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{text}", "{mask}"),
        ("{text} {mask} {mask}", "{mask}"),
        ("{text} {soft:0} {mask}", "soft"),
        ("{text} {__import__('os')} {mask}", "__import__"),
        ("{text", "{"),
        ('[{"role": "user"', "not JSON"),
        ('[{"role": "user", "content": "{text}"}]', "messages"),
    ],
)
def test_templates(train, template, said):
    refused(train("--template", template), said)


def test_label_words(train):
    refused(train("--label-words", "good"), "LABEL=WORD")
    refused(train("--label-words", "good=x", "--label-words", "good=y"), "twice")
    refused(train("--label-words", "god=fine"), "'god'", "bad, good")
    refused(train("--label-words", "good=bad"), "'bad'", "its own")


def test_existing_folder_is_kept(train, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    refused(train(), "exists already", "--overwrite")
    refused(train("--overwrite"), "not an artefact")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_overwrite_replaces_an_artefact_only_when_done(train, foreword, tmp_path):
    assert train().code == 0
    first = foreword("show", tmp_path / "out", "--json").out
    refused(train(), "--overwrite")
    refused(
        train("--overwrite", "-o", "optimizer=adamw", "-o", "learning_rate=1e20", "-o", "clip=0", steps=6), "number"
    )
    assert foreword("show", tmp_path / "out", "--json").out == first
    assert train("--overwrite", "--seed", "1").code == 0
    assert foreword("show", tmp_path / "out", "--json").out != first


@pytest.fixture
def copy(artefact, tmp_path):
    return shutil.copytree(artefact, tmp_path / "copy")


def test_artefact_that_is_missing(foreword, tmp_path):
    for command in (("show",), ("predict",), ("evaluate", "--data", "builtin:sentiment")):
        refused(foreword(command[0], tmp_path / "none", *command[1:]), "none", "not an artefact")


def test_artefact_that_is_truncated(foreword, copy):
    file = copy / "prompt.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    refused(foreword("predict", copy, "x"), "truncated")
    (copy / "foreword.json").write_text((copy / "foreword.json").read_text()[:100])
    refused(foreword("show", copy), "damaged")


def test_artefact_that_was_tampered_with(foreword, copy):
    file = copy / "prompt.safetensors"
    tensors = load_file(file)
    tensors["embed"][0, 0] += 1
    save_file(tensors, file)
    refused(foreword("show", copy), "changed after it was written")


def test_artefact_of_another_model(foreword, artefact, data, tmp_path):
    from foreword.models.hf.tiny_checkpoints import byte_tokenizer, random_model

    tokenizer = byte_tokenizer("masked")
    for name, (seed, width) in {"weights": (1, 32), "shape": (0, 64)}.items():
        random_model("masked", tokenizer, seed, width, 2, 512).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    refused(foreword("predict", artefact, "x", "--model", tmp_path / "shape"), "another shape", "foreword-tiny")
    refused(
        foreword("predict", artefact, "x", "--model", tmp_path / "weights"), "other weights", "--allow-other-weights"
    )
    allowed = foreword("predict", artefact, "x", "--model", tmp_path / "weights", "--allow-other-weights")
    assert allowed.code == 0
    assert "other weights" in allowed.err
    refused(foreword("predict", artefact, "x", "--kind", "causal"), "masked", "causal")


def test_rows_that_do_not_fit_the_artefact(foreword, artefact, data, tmp_path):
    refused(foreword("predict", artefact, "  "), "TEXT 1 is empty")
    odd = rows(tmp_path / "odd.jsonl", {"text": "a", "label": "odd"})
    refused(foreword("evaluate", artefact, "--data", odd, "--split", "all"), "odd.jsonl, row 1", "'odd'")
    bare = rows(tmp_path / "bare.jsonl", {"text": "a"})
    refused(foreword("evaluate", artefact, "--data", bare, "--split", "all"), "label")
    two = ("--text", "text", "--text", "label")
    refused(foreword("evaluate", artefact, "--data", data, *two), "reads 1 text")


def test_disk_that_is_full(data, tmp_path):
    """A file may not grow over 4 kB: one sentence, and nothing half-written is left."""

    def small():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    out = tmp_path / "out"
    command = [sys.executable, "-m", "foreword", "train", "prompt-tuning", *TINY, "--data", data, "--out", out]
    found = subprocess.run(
        [*map(str, command), "-o", "steps=1", "-o", "length=64"],
        capture_output=True, text=True, check=False, preexec_fn=small,
    )  # fmt: skip
    assert found.returncode == 2, found.stderr
    assert "could not be written (File too large)" in found.stderr.splitlines()[-1]
    assert not [p for p in tmp_path.iterdir() if p.name != "out.checkpoint"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(alphabet=st.sampled_from("{}|:'\"[]\\_ \x00\u202e\u05d0maskinport"), min_size=1), min_size=1, max_size=3
    )
)
def test_any_text_is_data(foreword, artefact, texts):
    """Text from outside is read as it is or refused as empty; it is never a template, and never ends in a traceback."""
    found = foreword("predict", artefact, "--json", "--", *texts)
    if all(t.strip() for t in texts):
        assert [json.loads(line)["text"] for line in found.out.splitlines()] == texts
    else:
        assert found.code == 2
        assert "is empty" in found.error


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(template=st.text(alphabet=st.sampled_from("{}|:'\" softmaskenx1_().,\u202e\u05d0"), min_size=1))
def test_any_template_is_read_or_refused(train, tmp_path, template):
    found = train("--overwrite", "--template", template, method="manual", steps=0)
    assert found.code in (0, 2)
    assert found.code == 0 or found.error
