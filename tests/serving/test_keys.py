"""python -m pytest tests/serving/test_keys.py"""

import hashlib
import hmac
import json
import os
import stat
import threading

import pytest
from click.testing import CliRunner

from foreword.cli.main import cli
from foreword.errors import ConfigError
from foreword.serving.keys import Key, KeyRing


@pytest.fixture
def ring(tmp_path) -> KeyRing:
    return KeyRing.open(tmp_path)


def test_a_key_is_found_by_its_token_alone(ring):
    assert ring.empty
    token = ring.add(["acme-*"], ["acme-*"], "team acme")
    other = ring.add(["*"])
    assert not ring.empty
    key = ring.find(token)
    assert key is not None and key.note == "team acme"
    _, id, secret = token.split("_", 2)
    _, other_id, _ = other.split("_", 2)
    wrong = [
        None, "", "fw", "fw_", f"fw_{id}", f"fw_{id}_", f"fw_{id}_{secret}x", f"fw_{id}_{secret[:-1]}", token.upper(),
        f"fw_{other_id}_{secret}", f"xx_{id}_{secret}", f"fw__{secret}", "fw_unknown_", "\ud800", token + "\n",
    ]  # fmt: skip
    assert [ring.find(t) for t in wrong] == [None] * len(wrong)


def test_only_hashes_are_stored_and_only_the_owner_may_read_them(ring):
    token = ring.add(["*"])
    secret = token.split("_", 2)[2]
    assert secret not in ring.file.read_text()
    assert stat.S_IMODE(ring.file.stat().st_mode) == 0o600


def test_scopes_are_apart():
    key = Key("k", infer=("acme-*",), administer=("acme-test-?",))
    assert key.may_infer("acme-x") and not key.may_infer("acme") and not key.may_infer("xacme-x")
    assert key.may_administer("acme-test-1") and not key.may_administer("acme-x")
    assert not Key("k", administer=("*",)).may_infer("x")
    assert not Key("k", infer=("Acme",)).may_infer("acme")


def test_removal_is_seen_by_a_ring_that_is_open(tmp_path, ring):
    running = KeyRing.open(tmp_path)
    token = ring.add(["*"])
    key = running.find(token)
    assert key is not None
    ring.remove(key.id)
    assert running.find(token) is None
    with pytest.raises(ConfigError, match="no key with the id"):
        ring.remove(key.id)
    assert not running.empty and not KeyRing.open(tmp_path).empty  # the last one's end lets nobody in


def test_keys_do_not_become_none_because_their_file_is_gone(tmp_path, ring):
    """Else whoever can remove a file lets everybody in."""
    ring.add(["*"])
    assert not ring.empty
    ring.file.unlink()
    assert not ring.empty


def test_what_may_do_nothing_is_refused(ring):
    for infer in ([], [""], ["a", ""]):
        with pytest.raises(ConfigError, match="allow something"):
            ring.add(infer)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: "{", lambda entry: [{"id": "x"}], lambda entry: {"keys": [entry]}, lambda entry: [7],
        lambda entry: [{**entry, "hash": 5}], lambda entry: [{**entry, "hash": "é" * 64}],
        lambda entry: [{**entry, "id": ["x"]}], lambda entry: [{**entry, "infer": "acme-*"}],
        lambda entry: [{**entry, "administer": [1]}], lambda entry: [{**entry, "infer": None}],
        lambda entry: "[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_lets_nobody_in(tmp_path, ring, change):
    """A string of patterns above all, which read letter by letter has a star that allows everything."""
    token = ring.add(["acme-*"])
    before = ring.file.read_bytes()
    given = change(json.loads(before)[0])
    ring.file.write_text(given if isinstance(given, str) else json.dumps(given))
    assert ring.find(token) is None and not ring.empty
    for fails in (ring.list, lambda: ring.add(["*"]), lambda: ring.remove("x"), lambda: KeyRing.open(tmp_path)):
        with pytest.raises(ConfigError, match="cannot be read as keys"):
            fails()
    ring.file.write_bytes(before)
    assert ring.find(token) is not None


def test_a_pipe_in_place_of_the_file_lets_nobody_in_and_is_not_waited_for(tmp_path, ring):
    token = ring.add(["acme-*"])
    ring.file.unlink()
    os.mkfifo(ring.file)
    assert ring.find(token) is None and not ring.empty
    with pytest.raises(ConfigError, match="no plain file"):
        KeyRing.open(tmp_path)


def test_a_file_that_cannot_be_looked_at_is_not_one_without_keys(tmp_path, ring, monkeypatch):
    def refused(self, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(ring.file), "stat", refused)
    fresh = KeyRing(ring.file)
    assert not fresh.empty and fresh.find("fw_a_b") is None


def test_a_change_that_leaves_no_trace_in_time_or_size_is_seen(ring, tmp_path):
    """Two keys change places in the same file within one tick of the disk's clock."""
    running = KeyRing.open(tmp_path)
    token = ring.add(["a"])
    assert running.find(token) is not None
    told = ring.file.stat()
    entries = json.loads(ring.file.read_text())
    text = ring.file.read_text().replace(entries[0]["hash"], "0" * 64)
    ring.file.write_text(text)  # the same file and size
    os.utime(ring.file, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert running.find(token) is None


def test_changes_at_once_lose_no_key(tmp_path, ring):
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(KeyRing.open(tmp_path).add(["*"]))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ring.list()) == 12 and all(ring.find(token) for token in made)


def test_a_failed_change_leaves_the_keys_and_no_readable_rest(ring, monkeypatch):
    token = ring.add(["*"])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ring.add(["*"])
    monkeypatch.undo()
    assert ring.find(token) is not None and len(ring.list()) == 1
    ring.add(["*"])
    assert len(ring.list()) == 2


def test_unknown_ids_take_the_same_work(ring, monkeypatch):
    """One hash and one comparison of equal lengths, whoever asks with whatever."""
    token = ring.add(["*"])
    done: list[tuple[str, int]] = []
    compare, sha = hmac.compare_digest, hashlib.sha256
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: done.append(("compare", len(b))) or compare(a, b))
    monkeypatch.setattr(hashlib, "sha256", lambda data: done.append(("hash", 0)) or sha(data))
    id = token.split("_")[1]
    for given in (token, f"fw_{id}_wrong", "fw_unknown_wrong", "", None, f"fw_{id}_"):
        done.clear()
        ring.find(given)
        assert done == [("hash", 0), ("compare", 64)]


def test_the_commands(tmp_path):
    run = CliRunner()
    made = run.invoke(cli, ["keys", "add", str(tmp_path), "--infer", "a-*", "--note", "for a"])
    assert made.exit_code == 0
    token = made.stdout.strip()
    key = KeyRing.open(tmp_path).find(token)
    assert key is not None
    listed = run.invoke(cli, ["keys", "list", str(tmp_path)])
    assert "keys.json" in made.stderr and token not in made.stderr
    assert key.id in listed.stdout and "a-*" in listed.stdout and token not in listed.stdout
    assert run.invoke(cli, ["keys", "remove", str(tmp_path), key.id]).exit_code == 0
    assert KeyRing.open(tmp_path).find(token) is None
