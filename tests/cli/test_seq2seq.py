"""An encoder-decoder model from the command line. Run: python -m pytest tests/cli/test_seq2seq.py"""

import json

MODEL = ("--model", "foreword-tiny-seq2seq")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def test_labels_are_learnt_shown_measured_and_predicted(foreword, data, tmp_path):
    out = tmp_path / "prefix"
    options = ("-o", "steps=2", "-o", "length=2")
    made = foreword("train", "prefix-tuning", *MODEL, "--data", data, *options, "--out", out)
    assert made.code == 0, made.err
    shown = foreword("show", out).out
    assert "prefix of encoder" in shown
    assert "3 layers, 4 heads of 12" in shown
    assert "accuracy" in foreword("evaluate", out, "--data", data).out
    assert foreword("predict", out, "a fine film").out.strip() in ("good", "bad")
    one = foreword("train", "prefix-tuning", *MODEL, "--data", data, "-o", "sites=decoder", "--out", tmp_path / "x")
    assert "choose among encoder, self, cross" in one.error
    served = foreword("serve", tmp_path)
    assert "foreword serve does not read yet" in served.error


def test_soft_prompts_stand_on_both_halves(foreword, data, tmp_path):
    out = tmp_path / "soft"
    template = "{soft:3} {text|shorten}{decoder}{soft:2}{answer}"
    made = foreword(
        "train",
        "prompt-tuning",
        *MODEL,
        "--data",
        data,
        "-o",
        "steps=2",
        "--template",
        template,
        "--out",
        out,
        "--json",
    )
    assert made.code == 0, made.err
    assert json.loads(made.out)["numbers_trained"] == 5 * 32
    assert json.loads(foreword("show", out, "--json").out)["template"] == template
    other = foreword(
        "train", "manual", "--model", "foreword-tiny-causal", "--data", data, "--template", "{text}{decoder}{answer}",
        "--out", tmp_path / "y",
    )  # fmt: skip
    assert "is a causal model without a decoder of its own" in other.error


def test_texts_are_written_and_measured(foreword, tmp_path):
    rows = [{"text": f"{a} {b}", "target": f"{b} {a}"} for a in WORDS for b in WORDS[:3]]
    (tmp_path / "turn.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = ("--data", tmp_path / "turn.jsonl", "--text", "text", "--targets", "target")
    out = tmp_path / "texts"
    made = foreword("train", "manual", *MODEL, *texts, "--max-new-tokens", 6, "--out", out)
    assert made.code == 0, made.err
    assert "exact match" in foreword("evaluate", out, *texts).out
    answered = foreword("predict", out, "--json", "one two", "three four").out.splitlines()
    assert [json.loads(line)["text"] for line in answered] == ["one two", "three four"]
    masked = foreword("train", "manual", "--model", "foreword-tiny", *texts, "--out", tmp_path / "x")
    assert "a masked model cannot write" in masked.error
