"""What `foreword predict` takes for a text. Run: python -m pytest tests/cli/test_predict_inputs.py"""

import io
import json

import pytest

from foreword.cli.main import run


@pytest.fixture
def predict(capsys, monkeypatch):
    """Run `foreword predict` with these bytes on stdin; return its code, what it printed and its error."""

    def call(artefact, *arguments, stdin=b""):
        stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)), encoding="ascii")  # type: ignore[arg-type]
        monkeypatch.setattr("sys.stdin", stream)
        capsys.readouterr()
        code = run(["predict", str(artefact), *arguments])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    rows = [{"text_a": f"it is {n}", "text_b": f"it is {n % 3}", "label": n % 2} for n in range(40)]
    (folder / "pair.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ["train", "manual", "--model", "foreword-tiny", "--data", str(folder / "pair.jsonl")]
    assert run([*train, "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_stdin_is_read_in_its_own_encoding_without_its_mark(predict, artefact, encoding):
    code, out, _ = predict(artefact, "--json", stdin="käse film\r\n\nfine film\n".encode(encoding))
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["käse film", "fine film"]


def test_what_is_no_text_is_one_sentence_with_its_line(predict, artefact, pair):
    code, out, err = predict(artefact, stdin=b"ok\ncaf\xe9 film\n")
    assert (code, out) == (2, "") and "stdin, line 2 has the byte 0xe9, which is not UTF-8" in err
    code, _, err = predict(artefact, "caf\udce9")
    assert code == 2 and "TEXT 1 has the byte 0xe9" in err
    code, _, err = predict(artefact, stdin="fine".encode("utf-16")[:-1])
    assert code == 2 and "stdin is not the utf-16" in err
    for given, said in (
        ('{"text_a": null, "text_b": "it is 3"}', "TEXT 1: field 'text_a' is empty"),
        ('{"text_a": NaN, "text_b": "it is 3"}', "TEXT 1: field 'text_a' is empty"),
        ('{"text_a": "", "text_b": "it is 3"}', "TEXT 1: field 'text_a' is empty"),
        ('{"text_a": ["x"], "text_b": "it is 3"}', "TEXT 1: field 'text_a' is a list"),
        ('{"text_a": "\\ud83d", "text_b": "it is 3"}', "TEXT 1: field 'text_a' has half of a character"),
        ('{"text_a": "x", "text_a": "y", "text_b": "z"}', "TEXT 1 is not JSON (it has the key 'text_a' twice"),
        ('{"text_a": ' + "[" * 100_000, "TEXT 1 is not JSON (it is nested too deeply)"),
        ('{"text_a": "x"', "TEXT 1 is not JSON"),
        ("plain", "TEXT 1 lacks text_a, text_b"),
    ):
        code, _, err = predict(pair, given)
        assert code == 2 and said in err, given[:60]
    code, out, _ = predict(pair, '{"text_a": 5, "text_b": true}', "--json")
    assert code == 0 and json.loads(out)["text_a"] == "5"
