"""Templates, rows, files and arguments of wrong types, drawn at random: `python tests/hostile.py SEED COUNT`.

Each must end in a value or in a `ForewordError` of one sentence. Prints the seed and every draw that ended otherwise.
It is a script of its own, since the tests' type checks would refuse arguments before the package does.
"""

import collections
import datetime
import decimal
import json
import random
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet

import foreword
from foreword.core.format import Decoding, Format
from foreword.core.template import Template
from foreword.errors import ForewordError
from foreword.tasks.read import read_task

WORDS = "fine { } {{ {text} {mask} {answer} {soft:3} {soft:99999} {demos} {decoder} {'x'} |shorten".split()
WORDS += ["a b", "", " ", "\ud83d", "\udce9", "\x00", "①", "infinity", "1", "0", '["a", "b"]', "é" * 9, "[MASK]"]
WORDS += ["\ufeff", "-1", "--1", "1e999", "NaN", "null", "[[[[", "text", "label", "\u2028", "9" * 320]


class Odd:
    def __repr__(self):
        raise RuntimeError("no repr")


def scalar(rng):
    odd = [None, True, 5, -1, 0, 2**53 + 1, 10**5000, 1.5, float("nan"), float("inf"), 1j, Odd(), object, print]
    odd += [b"fine", b"\xff\xfe", bytearray(b"x"), memoryview(b"y"), collections.Counter("ab"), Path("x"), range(3)]
    odd += [decimal.Decimal("1.5"), decimal.Decimal("NaN"), decimal.Decimal("Infinity"), datetime.date(2020, 1, 2)]
    odd += [datetime.datetime(2020, 1, 2), datetime.timedelta(1), np.int64(3), np.float32("nan"), np.bool_(True)]
    odd += [np.datetime64("NaT"), np.datetime64("2020-01-01", "ns"), np.timedelta64(1, "s"), np.str_("s"), slice(1)]
    odd += [np.bytes_(b"n"), np.longdouble(2), np.array("zero"), np.void(b"v"), pandas.NA, pandas.NaT]
    odd += [pandas.Timestamp("2020"), pandas.Interval(0, 1), pyarrow.scalar("p"), pyarrow.scalar(None)]
    return rng.choice([*odd, *rng.choices(WORDS, k=4)])


def value(rng, depth=0):
    """A value of any type; nests stay shallow but for one that is very deep."""
    kind = rng.randrange(14) if depth < 3 else 0
    several = [value(rng, depth + 1) for _ in range(rng.randrange(4))] if kind > 5 else []
    if kind == 6:
        return several
    if kind == 7:
        return tuple(several)
    if kind == 8:
        return {key(rng): one for one in several}
    if kind == 9:
        return np.array([rng.choice(WORDS) for _ in range(3)], dtype=object)
    if kind == 10:
        return pandas.DataFrame({"text": [rng.choice(WORDS)], rng.choice(["label", 0]): [1]}, dtype=object)
    if kind == 11:
        return (one for one in several)
    if kind == 12:
        return frozenset("ab")
    if kind == 13:
        deep = []
        for _ in range(rng.choice([3, 3000])):
            deep = [deep]
        return deep
    return scalar(rng)


def key(rng):
    usual = ["text", "label", "text", "label", "options", "targets", "role", "content"]
    return rng.choice([*usual, *WORDS, 0, 1, None, 1.5, ("a", "b"), True, float("nan")])


def text(rng):
    return "".join(rng.choice(WORDS) for _ in range(rng.randrange(6)))


def a_template(rng, _):
    source = rng.choice([text(rng), [{"role": rng.choice(["user", text(rng)]), "content": text(rng)}], value(rng)])
    template = Template.parse(source)
    again = Template.parse(template.source)
    assert again.source == template.source
    template.fill({"text": "x"} if rng.random() < 0.5 else value(rng))


def a_format(rng, _):
    template = Template.parse("{text} {mask}") if rng.random() < 0.8 else value(rng)
    options = {name: value(rng) for name in ("labels", "words", "max_length", "shift", "temperature", "decoding")}
    Format(template, **dict(rng.sample([*options.items()], 2)))


def a_decoding(rng, _):
    fields = list(Decoding.__dataclass_fields__)
    Decoding(**{name: value(rng) for name in rng.sample(fields, 2)}).to_json()


def records(rng):
    """Rows that mostly make sense, in which some cells and names do not."""
    rows = []
    for number in range(rng.choice([0, 1, 5, 20])):
        row = {"text": f"words {number}", "label": "ab"[number % 2]}
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            row[key(rng)] = value(rng)
        rows.append(row)
    return rows


def a_task(rng, _):
    rows = rng.choice([records, records, records, value])(rng)
    if rng.random() < 0.2 and isinstance(rows, list):
        rows = pandas.DataFrame(
            {"text": [scalar(rng) for _ in range(6)], rng.choice(["label", 3]): [*"ababab"]}, dtype=object
        )
    names = ("text", "label", "options", "targets", "name", "template", "label_words", "labels", "metric", "case",
             "slots", "seed")  # fmt: skip
    task = foreword.Task(rows, **{name: value(rng) for name in rng.sample(names, rng.choice([0, 0, 1, 2]))})
    task.hashes()
    task.describe()
    if rng.random() < 0.5:
        task.format("masked")
    else:
        rng.choice([task.few_shot, task.limit, task.rows, task.relabel_shuffled, task.format])(value(rng))


def a_file(rng, folder):
    suffix = rng.choice([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"])
    path = folder / f"x{suffix}"
    lines = [json.dumps({"text": text(rng), "label": rng.choice(["a", "b", 1, 2**60, None])}) for _ in range(12)]
    odd = ["[" * 100_000, '{"text": ' + "9" * 5000 + "}", '{"text": 1, "text": 2}', '{"text": "\\ud83d", "label": "a"}',
           "5", '{"text": Infinity, "label": NaN}', '{"": {}}', text(rng)]  # fmt: skip
    lines[rng.randrange(12)] = rng.choice(odd)
    content = "\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]"
    if suffix in (".csv", ".tsv"):
        head = rng.choice(["text,label", "text,text,label", "text,label\n", ",label", "label", text(rng)])
        content = "\n".join(
            [head, *(f"{text(rng)},{rng.choice('ab')}" for _ in range(9)), "x" * rng.choice([9, 200_000])]
        )
    data = content.encode(rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"]), "surrogatepass")
    if suffix == ".parquet":
        stored = [None, True, 5, 1.5, float("nan"), b"fine", b"\xff", decimal.Decimal("1.5"), datetime.date(2020, 1, 2)]
        stored += [datetime.datetime(2020, 1, 2), datetime.timedelta(1), [], ["a"], {"a": 1}, *rng.choices(WORDS, k=4)]
        cells = rng.choices(stored, k=rng.choice([1, 2, 4])) * 8  # pyarrow itself crashes on stranger ones
        cells = cells[:8]
        try:
            pyarrow.parquet.write_table(pyarrow.table({"text": cells, "label": [*"abababab"]}), path)
            data = path.read_bytes()
        except Exception:  # pyarrow has no such column
            data = b"PAR1"
    for _ in range(rng.choice([0, 0, 1, 3])):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.randbytes(rng.randrange(3)) + data[at + rng.randrange(3) :]
    path.write_bytes(data)
    source = path if rng.random() < 0.9 else value(rng)
    names = ("text", "label", "options", "name", "labels", "split", "seed", "template", "metric")
    read_task(source, **{name: value(rng) for name in rng.sample(names, rng.choice([0, 0, 0, 1]))})


FILMS = [
    {"text": f"a {word} film {n}", "label": label}
    for n in range(10)
    for word, label in (("dull", "bad"), ("fine", "good"))
]


class Models:
    """Artefacts that predictions are asked of, made once."""

    def __init__(self):
        self.lm = foreword.load("foreword-tiny")
        self.task = foreword.Task(FILMS, name="films")
        pair = [{"text_a": r["text"], "text_b": "so", "label": r["label"]} for r in FILMS]
        options = [{"text": r["text"], "options": ["x", "y"], "label": n % 2} for n, r in enumerate(FILMS)]
        tasks = [self.task, foreword.Task(pair), foreword.Task(options, options="options")]
        self.artefacts = [foreword.train(self.lm, task, "manual") for task in tasks]
        self.artefacts.append(foreword.train(self.lm, self.task, "bag-of-words"))


MODELS = []


def models():
    MODELS or MODELS.append(Models())
    return MODELS[0]


def an_item(rng):
    if rng.random() < 0.5:
        return value(rng)
    names = ["text", "text_a", "text_b", "options"]
    return {name: rng.choice([value(rng), "fine", ["x", "y"]]) for name in rng.sample(names, rng.choice([1, 2, 3]))}


def a_prediction(rng, _):
    one = rng.choice(models().artefacts)
    texts = value(rng) if rng.random() < 0.4 else ["fine", an_item(rng)]
    for found in one.predict(texts):
        assert found.label


def an_argument(rng, folder):
    made = models()
    one = rng.choice(made.artefacts)
    calls = [
        lambda: foreword.load(value(rng), kind=rng.choice([None, value(rng)])),
        lambda: foreword.load("foreword-tiny", **{rng.choice(["kind", "dtype", "device", "quantise"]): value(rng)}),
        lambda: foreword.wrap(value(rng), value(rng)),
        lambda: foreword.train(value(rng), made.task),
        lambda: foreword.train(made.lm, value(rng)),
        lambda: foreword.train(made.lm, made.task, value(rng)),
        lambda: foreword.train(made.lm, made.task, "manual", **{rng.choice(["seed", "form", "progress"]): value(rng)}),
        lambda: foreword.train(made.lm, made.task, "manual", calibrate=value(rng)),
        lambda: foreword.train(
            made.lm,
            made.task.with_(train=made.task.train[: rng.randrange(2)]),
            rng.choice(["bag-of-words", "linear-probe", "manual"]),
        ),
        lambda: foreword.train(
            made.lm, made.task, "bag-of-words", **{rng.choice(["min_rows", "regularisation"]): scalar(rng)}
        ),
        lambda: one.evaluate(value(rng)),
        lambda: one.evaluate(made.task, value(rng)),
        lambda: one.predict_rows(value(rng)),
        lambda: foreword.open_artefact(value(rng)),
        lambda: foreword.Artefact.load(value(rng)),
        lambda: foreword.ensemble(value(rng)),
        lambda: foreword.compare(made.lm, made.task, value(rng), out=folder / "runs"),
        lambda: foreword.compare(value(rng), value(rng), ["manual"], out=folder / "runs"),
        lambda: foreword.compare(made.lm, made.task, ["manual"], out=folder / "runs", options=value(rng), seeds=0),
        lambda: foreword.retrain(*[value(rng) for _ in range(3)]),
        lambda: foreword.bias_report(value(rng), value(rng)),
        lambda: foreword.train_tasks(made.lm, value(rng), value(rng), out=folder / "store"),
    ]
    rng.choice(calls)()


KINDS = [(a_template, 20), (a_format, 6), (a_decoding, 6), (a_task, 30), (a_file, 16), (a_prediction, 12),
         (an_argument, 10)]  # fmt: skip


def fault_of(kind, rng, folder):
    """What is wrong with how a draw ended, or None."""
    try:
        kind(rng, folder)
    except ForewordError as error:
        said = str(error)
        if not said.strip() or "\n" in said.strip() or "Traceback" in said or " object at 0x" in said:
            return f"no sentence: {said!r:.300}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-4:]
        return f"{type(error).__name__}: {str(error)[:200]!r} at " + " < ".join(
            f"{Path(f.filename).name}:{f.lineno}" for f in reversed(last)
        )
    return None


def main(seed, count):
    warnings.simplefilter("error")
    print(f"seed {seed}", flush=True)
    draw = random.Random(seed)
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            (kind,) = draw.choices([k for k, _ in KINDS], [w for _, w in KINDS])
            own = draw.randrange(2**62)
            fault = fault_of(kind, random.Random(own), Path(folder))
            if fault:
                faults += 1
                print(f"{number} {kind.__name__} {own}: {fault}".encode(errors="backslashreplace").decode(), flush=True)
    print(f"{count} draws, {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
