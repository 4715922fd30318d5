"""python -m pytest tests/serving/test_store.py"""

import json
import multiprocessing
import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from foreword.cli.main import cli
from foreword.core.artefact import CARD, RECORD, TENSORS, Artefact
from foreword.core.files import write_folder
from foreword.errors import ArtefactError, ConfigError
from foreword.models.load import load
from foreword.serving import journal, training_outputs
from foreword.serving import store as module
from foreword.serving.names import check_alias, check_name, parse
from foreword.serving.store import PromptStore, UnknownPrompt, read_version
from tests.seeds import new_seed
from tests.serving.made import artefact


def fake(number: int) -> dict[str, bytes]:
    """Contents that differ; the store looks at bytes alone."""
    return {RECORD: json.dumps({"form": "soft", "n": number}).encode(), TENSORS: f"tensors {number}".encode()}


def read(version: module.Version) -> int:
    return json.loads((version.folder / RECORD).read_text())["n"]


@pytest.fixture
def store(tmp_path) -> PromptStore:
    return PromptStore.open(tmp_path / "s", create=True)


@pytest.mark.parametrize("name", ["a", "Acme-1.2_x", "9", "a" * 128])
def test_names_that_may_be(name):
    assert check_name(name) == name
    assert parse(f"{name}@3") == (name, 3)
    assert parse(f"{name}@stable") == (name, "stable")


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".x", "-x", "a/b", "a\\b", "../x", "a@1", "a b", "a\n", "a\0", "é", "a" * 129, "%2e%2e"]
)
def test_names_that_may_not_be(name, store):
    with pytest.raises(ConfigError, match="cannot be a name"):
        check_name(name)
    with pytest.raises(ConfigError):
        store.add(name, fake(1))
    assert not store.names()


def test_aliases_are_no_numbers():
    with pytest.raises(ConfigError, match="version's number"):
        check_alias("12")
    with pytest.raises(ConfigError):
        parse("a@../b")


def test_versions_stay_and_the_last_is_current(store):
    first, second = store.add("x", fake(1)), store.add("x", fake(2))
    assert (first.id, second.id, store.resolve("x")) == ("x@1", "x@2", second)
    assert store.add("x", fake(2)) == second  # the same bytes are the same version
    assert store.resolve("x@1") == first
    assert [read(v) for v in store.served("x").versions] == [1, 2]
    for wrong in ("y", "x@3", "x@beta"):
        with pytest.raises(UnknownPrompt):
            store.resolve(wrong)


def test_going_back_and_back_again(store):
    for number in (1, 2, 3):
        store.add("x", fake(number))
    assert store.roll_back("x").number == 2
    assert store.roll_back("x").number == 1
    with pytest.raises(ConfigError, match="no version that was current before"):
        store.roll_back("x")
    assert store.roll_back("x", 3).number == 3
    assert store.roll_back("x", 3).number == 3  # which is no step to go back over
    assert store.roll_back("x").number == 1
    with pytest.raises(UnknownPrompt):
        store.roll_back("x", 9)


def test_a_prompt_has_an_artefacts_files_alone(store, tmp_path):
    for wrong in ({"../../../../evil": b""}, {"x.pkl": b""}, {}):
        contents = {**fake(1), **wrong} if wrong else {RECORD: b"{}"}
        with pytest.raises(ConfigError, match="has the files"):
            store.add("x", contents)
    assert not store.names() and not [*tmp_path.rglob("evil")]


def test_aliases_and_shares(store):
    for number in (1, 2):
        store.add("x", fake(number))
    store.alias("x", "stable", 1)
    store.share("x", 1, 0.25)
    drawn = [store.resolve("x", n / 1000).number for n in range(1000)]
    assert drawn.count(1) == 250
    assert {store.resolve(m, 0.0).number for m in ("x@2", "x@1")} == {1, 2}
    assert store.resolve("x@stable", 0.9).number == 1
    with pytest.raises(ConfigError, match=r"share of the traffic|alias"):
        store.remove("x", 1)
    store.share("x", None)
    with pytest.raises(ConfigError, match="alias stable"):
        store.remove("x", 1)
    store.alias("x", "stable", None)
    store.remove("x", 1)
    with pytest.raises(ConfigError, match="current version"):
        store.remove("x", 2)
    for fraction in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="share"):
            store.share("x", 2, fraction)


def test_what_is_removed_can_be_read_for_a_while_and_goes_at_last(store, monkeypatch):
    version = store.add("x", fake(1))
    store.remove("x")
    assert not store.names()
    with pytest.raises(UnknownPrompt):
        store.resolve("x")
    assert read(version) == 1
    PromptStore.open(store.root)
    assert read(version) == 1
    monkeypatch.setattr(journal, "GRACE", 0.0)
    again = PromptStore.open(store.root)
    assert not version.folder.exists()
    assert again.add("x", fake(5)).number == 2  # numbers are never used twice


def test_a_running_store_clears_away_what_is_due(store, monkeypatch):
    kept, gone = store.add("x", fake(1)), store.add("y", fake(2))
    monkeypatch.setattr(journal, "GRACE", 0.3)
    with store.watch(0.02):
        store.remove("y")
        assert read(gone) == 2
        until = time.monotonic() + 10
        while gone.folder.exists() and time.monotonic() < until:
            time.sleep(0.02)
    assert not gone.folder.exists() and read(kept) == 1
    store.remove("x")
    monkeypatch.setattr(time, "time", lambda: 1e9)  # somebody set the clock back; nothing stays for ever
    store.clear()
    assert not kept.folder.exists()


def test_names_do_not_wait_for_the_disk(store, monkeypatch):
    """Who resolves a name is answered while another thread writes a large prompt."""
    store.add("x", fake(1))
    writing, go_on = threading.Event(), threading.Event()
    inner = module.write_folder

    def slow(*args):
        writing.set()
        assert go_on.wait(30)
        inner(*args)

    monkeypatch.setattr(module, "write_folder", slow)
    thread = threading.Thread(target=store.add, args=("y", fake(2)))
    thread.start()
    assert writing.wait(30)
    assert (store.resolve("x").number, store.names(), store.served("x").share) == (1, ["x"], None)
    go_on.set()
    thread.join()
    assert store.names() == ["x", "y"]


def test_artefacts_of_training_are_adopted_when_they_change(tmp_path):
    lm = load("foreword-tiny")
    root = tmp_path / "out"
    for seed, name in enumerate(("a", "b")):
        artefact(lm, "ahead", seed=seed).save(root / "artefacts" / name)
    first = PromptStore.open(root)
    assert first.names() == ["a", "b"]
    assert PromptStore.open(root).resolve("a").number == 1
    artefact(lm, "ahead", seed=7).save(root / "artefacts" / "a")  # trained again
    second = PromptStore.open(root)
    assert second.resolve("a").number == 2
    assert Artefact.load(second.resolve("a@1").folder).seed == 0  # which did not change under it
    assert second.resolve("b").number == 1
    second.remove("b")
    assert PromptStore.open(root).names() == ["a"]  # the same bytes stay removed
    artefact(lm, "ahead", seed=8).save(root / "artefacts" / "b")
    assert PromptStore.open(root).resolve("b").number == 2


def test_a_folder_of_artefacts_one_artefact_and_none(tmp_path):
    lm = load("foreword-tiny")
    artefact(lm, "ahead").save(tmp_path / "many" / "one")
    artefact(lm, "ahead").save(tmp_path / "many" / "bad name")
    store = PromptStore.open(tmp_path / "many")
    assert store.names() == ["one"]
    assert store.skipped == ["bad name"]
    assert PromptStore.open(tmp_path / "many" / "one").names() == ["one"]
    with pytest.raises(ConfigError, match="holds no artefacts"):
        PromptStore.open(tmp_path / "none")


def plant(folder: Path, number: int) -> None:
    write_folder(folder, {CARD: b"card %d" % number, **fake(number)})


def test_links_or_copies_the_adopted_bytes_are_the_stores_own(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    for root, link in ((tmp_path / "linked", os.link), (tmp_path / "copied", refused)):
        monkeypatch.setattr(os, "link", link)
        plant(root / "artefacts" / "a", 1)
        version = PromptStore.open(root).resolve("a")
        files = [version.folder / name for name in (RECORD, TENSORS, CARD)]
        assert {file.stat().st_nlink for file in files} == {2 if link is not refused else 1}
        plant(root / "artefacts" / "a", 2)
        assert [read(v) for v in PromptStore.open(root).served("a").versions] == [1, 2]
        shutil.rmtree(root / "artefacts")
        assert read(PromptStore.open(root).resolve("a@1")) == 1
        assert PromptStore.open(root).resolve("a").number == 2


def test_training_that_replaces_an_artefact_meanwhile_is_adopted_whole(tmp_path, monkeypatch):
    """The folder changes between two of its files: all are of the new one, or all of the old."""
    inner, done = training_outputs._link_file, []
    plant(tmp_path / "artefacts" / "a", 1)

    def link(name, at, target):
        inner(name, at, target)
        if not done:
            done.append(name)
            plant(tmp_path / "artefacts" / "a", 2)

    monkeypatch.setattr(training_outputs, "_link_file", link)
    version = PromptStore.open(tmp_path).resolve("a")
    assert done
    contents = {file.name: file.read_bytes() for file in version.folder.iterdir()}
    assert contents in [{CARD: b"card %d" % n, **fake(n)} for n in (1, 2)]
    assert read(PromptStore.open(tmp_path).resolve("a")) == 2


def test_hidden_folders_and_the_stores_own_are_no_prompts(tmp_path):
    for name in ("a", ".b.writing", "served"):
        plant(tmp_path / name, 1)
    store = PromptStore.open(tmp_path)
    assert store.names() == ["a"]
    assert store.skipped == []


def seen_by(store: PromptStore) -> dict[str, object]:
    """All that a store tells, with the bytes of each version."""
    served = [store.served(name) for name in store.names()]
    return {
        one.name: (one.current.number, {v.number: read(v) for v in one.versions}, one.aliases, one.share)
        for one in served
    }


@pytest.mark.parametrize("part", ["before the state", "after it"])
def test_a_change_that_was_cut_off_is_seen_by_all_or_by_none(store, monkeypatch, part):
    """Else another process, which did not hear of version 1, would make another version 1."""
    other, broken = PromptStore.open(store.root), PromptStore.open(store.root)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if part == "after it":
            patch.setattr(broken._journal, "take", stop)
        else:
            inner = journal.write_whole
            patch.setattr(
                journal, "write_whole", lambda path, data: (inner if path.name != journal.STATE else stop)(path, data)
            )
        with pytest.raises(KeyboardInterrupt):
            broken.add("x", fake(1))
    expected = {"x": (1, {1: 1}, {}, None)} if part == "after it" else {}
    other.refresh()
    assert seen_by(other) == expected
    assert store.add("x", fake(2)).number == len(expected) + 1
    for one in (store, other, broken, PromptStore.open(store.root)):
        one.refresh()
        assert seen_by(one)["x"] == (len(expected) + 1, {1: 1, 2: 2} if expected else {1: 2}, {}, None)


def test_who_is_far_behind_or_lost_its_mark_reads_everything(store, monkeypatch):
    monkeypatch.setattr(journal, "TOLD", 5)
    other = PromptStore.open(store.root)
    for number in range(12):
        store.add(f"n{number}", fake(number))
        if number == 3:
            assert other.refresh()
    store.remove("n0")
    assert other.refresh() and not other.refresh()
    assert seen_by(other) == seen_by(store)
    (store.root / "served" / ".revision").unlink()
    store.add("late", fake(99))
    (store.root / "served" / ".revision").write_text("nonsense\n\n7 ../../x")
    store.add("later", fake(100))
    assert other.refresh()
    assert "later" in other.names() and seen_by(other) == seen_by(store)


def test_only_the_names_that_changed_are_read_again(store, monkeypatch):
    for number in range(20):
        store.add(f"n{number}", fake(number))
    other, opened = PromptStore.open(store.root), []
    store.add("n3", fake(99))
    inner = journal.parsed
    monkeypatch.setattr(journal, "parsed", lambda text: opened.append(text) or inner(text))
    assert other.refresh()
    assert len(opened) == 1 and read(other.resolve("n3")) == 99


def test_two_stores_of_one_folder_see_each_other(store):
    other = PromptStore.open(store.root)
    with other.watch(0.01):
        version = store.add("x", fake(1))
        until = time.monotonic() + 10
        while "x" not in other.names() and time.monotonic() < until:
            time.sleep(0.01)
        assert other.resolve("x") == version
    other.add("x", fake(2))
    assert store.add("x", fake(3)).number == 3  # on top of what the other did, unasked
    assert [read(v) for v in store.served("x").versions] == [1, 2, 3]
    assert not store.refresh()


def test_threads_that_change_at_once_lose_nothing(store):
    def add(part: int) -> None:
        for number in range(10):
            store.add("x" if number % 2 else f"x{part}", fake(part * 100 + number))

    threads = [threading.Thread(target=add, args=(part,)) for part in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = store.served("x").versions
    assert [v.number for v in versions] == list(range(1, 31))
    assert sorted(read(v) for v in versions) == sorted(p * 100 + n for p in range(6) for n in range(1, 10, 2))


def draw_change(rng: random.Random) -> list[object]:
    name, number = f"p{rng.randrange(3)}", rng.randrange(1, 8)
    return rng.choice([
        ["add", name, rng.randrange(10**6)], ["add", name, rng.randrange(10**6)], ["add", name, 5],
        ["roll_back", name, rng.choice([None, number])], ["alias", name, "stable", rng.choice([None, number])],
        ["share", name, rng.choice([None, number]), 0.5], ["remove", name, rng.choice([None, number, number])],
    ])  # fmt: skip


def change(store: PromptStore, what: str, name: str, *more) -> module.Version | None:
    try:
        return getattr(store, what)(name, *(map(fake, more) if what == "add" else more))
    except (UnknownPrompt, ConfigError):
        return None


def churn(root: str, seed: int, log: str) -> None:
    """Change a store at random until killed; each change is written down before it is made, and after it."""
    store, rng = PromptStore.open(root, create=True), random.Random(seed)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        drawn = draw_change(rng)
        os.write(out, json.dumps(drawn).encode() + b"\n")
        version = change(store, *drawn)
        os.write(out, json.dumps([version.id, read(version)] if version else None).encode() + b"\n")


def kill_soon(target, *arguments, between: tuple[float, float], rng: random.Random, times: int = 1) -> None:
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=target, args=(*arguments[:-1], f"{arguments[-1]}-{n}")) for n in range(times)]
    for process in started:
        process.start()
    time.sleep(rng.uniform(*between))
    for process in started:
        process.kill()
    for process in started:
        process.join()
        assert process.exitcode in (-9, 0)


def told(log: Path) -> list[list[object]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_killed_at_any_moment_it_has_what_was_answered_and_nothing_halfway(tmp_path):
    """A chain of kills; a store that nobody kills makes the same changes, with or without the one under way."""
    seed = new_seed()
    rng, changes, between = random.Random(seed), 0, 0
    root, twin = tmp_path / "killed", PromptStore.open(tmp_path / "whole", create=True)
    for round in range(25):
        log = tmp_path / f"log{round}-0"
        kill_soon(churn, str(root), rng.randrange(10**6), str(tmp_path / f"log{round}"), between=(0.01, 0.12), rng=rng)
        lines = told(log)
        store = PromptStore.open(root, create=True)
        for drawn in lines[::2][: len(lines) // 2]:
            change(twin, *drawn)
            changes += 1
        if seen_by(store) != seen_by(twin) and len(lines) % 2:
            change(twin, *lines[-1])
            between += 1
        assert seen_by(store) == seen_by(twin), f"seed {seed}, round {round}, after {changes} changes: {lines[-3:]}"
    assert changes > 50


def test_of_two_that_are_killed_together_no_version_is_ever_two(tmp_path):
    """Both change one store; a version that was once told has those bytes for ever, and each start finds all whole."""
    seed = new_seed()
    rng, known = random.Random(seed), {}
    root = tmp_path / "store"
    for round in range(15):
        log = tmp_path / f"log{round}"
        kill_soon(churn, str(root), rng.randrange(10**6), str(log), between=(0.02, 0.2), rng=rng, times=2)
        store = PromptStore.open(root, create=True)
        answers = [line for n in range(2) for line in told(tmp_path / f"log{round}-{n}")[1::2] if line]
        for name in store.names():
            served = store.served(name)
            assert {served.current.number, *served.aliases.values()} <= {v.number for v in served.versions}
            for version in served.versions:
                assert {p.name for p in version.folder.iterdir()} == {RECORD, TENSORS}
                answers.append([version.id, read(version)])
        for id, number in answers:
            assert known.setdefault(id, number) == number, f"seed {seed}, round {round}: {id}"
        assert not [path for path in root.rglob("*.writing") if path.is_dir()]
    assert len(known) > 20


def adopt(root: str, _: str) -> None:
    PromptStore.open(root)


def test_killed_while_it_adopts_it_adopts_the_rest_at_the_next_start(tmp_path):
    rng = random.Random(new_seed())
    for number in range(60):
        plant(tmp_path / "artefacts" / f"a{number}", number)
    again = {number for number in range(60) if rng.random() < 0.5}
    for trained in (set(), again):
        for number in trained:
            plant(tmp_path / "artefacts" / f"a{number}", 1000 + number)
        for _ in range(12):
            kill_soon(adopt, str(tmp_path), "", between=(0.001, 0.06), rng=rng)
        store = PromptStore.open(tmp_path)
        expected = {f"a{n}": {1: n, **({2: 1000 + n} if n in trained else {})} for n in range(60)}
        assert {name: told[1] for name, told in seen_by(store).items()} == expected
        for name in store.names():  # nothing else is left
            versions = {str(v.number) for v in store.served(name).versions}
            assert {p.name for p in (store.root / "served" / "names" / name).iterdir() if p.is_dir()} == versions


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_start_reads_states_and_no_artefact(tmp_path, count):
    for number in range(count):
        folder = tmp_path / "artefacts" / f"t{number}"
        folder.mkdir(parents=True)
        for name, data in fake(number).items():
            (folder / name).write_bytes(data)
    store = PromptStore.open(tmp_path)
    assert len(store.names()) == count
    opened = []

    def counting(inner):
        def counted(path, *args, **more):
            opened.append(os.path.basename(path))
            return inner(path, *args, **more)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", counting(Path.read_bytes))
        patch.setattr(os, "open", counting(os.open))
        assert len(PromptStore.open(tmp_path).names()) == count
    assert not {*opened} & {*training_outputs.FILES}
    assert opened.count(journal.STATE) == count


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"current": 3, "versions": {}}', "null"])
def test_a_damaged_state_is_named_at_the_start_and_harms_no_other_later(store, text):
    store.add("x", fake(1))
    other, said = PromptStore.open(store.root), []
    with other.watch(0.01, said.append):
        (store.root / "served" / "names" / "x" / "served.json").write_text(text)
        store._journal.tell(["x"])
        store.add("y", fake(2))
        until = time.monotonic() + 10
        while "y" not in other.names() and time.monotonic() < until:
            time.sleep(0.01)
        assert other.names() == ["x", "y"]  # of x what was known
        assert other.add("z", fake(3)).number == 1
    assert len(said) == 1 and "served.json is damaged" in said[0]
    again = PromptStore.open(store.root)  # the others are served, and the damaged one is kept for repair
    assert again.names() == ["y", "z"]
    assert list(again.damaged) == ["x"]
    assert "served.json is damaged" in again.damaged["x"]
    assert (store.root / "served" / "names" / "x" / "1" / TENSORS).is_file()
    with pytest.raises(UnknownPrompt):
        again.resolve("x")
    with pytest.raises(ConfigError, match="damaged state"):
        again.add("x", fake(4))
    shutil.rmtree(store.root / "served" / "names" / "x")
    assert PromptStore.open(store.root).names() == ["y", "z"]


def test_a_name_does_not_take_the_folder_of_another(store):
    """As where the disk takes Acme and acme for one."""
    store.add("acme", fake(1))
    (store.root / "served" / "names" / "Acme").symlink_to("acme")
    with pytest.raises(ConfigError, match="differs in case"):
        store.add("Acme", fake(2))
    assert read(store.resolve("acme")) == 1


def test_a_full_disk_changes_nothing(store, monkeypatch):
    store.add("x", fake(1))
    for place, fails in ((module, "write_folder"), (journal, "write_whole")):

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(place, fails, full)
            with pytest.raises(OSError, match="No space"):
                store.add("x", fake(2))
        assert seen_by(store) == seen_by(PromptStore.open(store.root)) == {"x": (1, {1: 1}, {}, None)}
    assert store.add("x", fake(3)).number == 2


def test_any_change_of_a_state_is_seen_and_the_rest_is_served(store):
    """Whatever byte is another one: nothing is served from a state that was changed."""
    draw = random.Random(new_seed(2**32))
    for number in range(3):
        store.add("x", fake(number))
    store.alias("x", "beta", 2)
    store.add("y", fake(9))
    file = store.root / "served" / "names" / "x" / "served.json"
    whole = file.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        at = draw.randrange(len(data))
        data[at] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(data) if draw.random() < 0.8 else whole[: draw.randrange(len(whole))])
        other = PromptStore.open(store.root)
        assert other.names() == ["y"] and list(other.damaged) == ["x"], bytes(data)
        assert {path.name for path in file.parent.iterdir()} >= {"1", "2", "3"}
    file.write_bytes(whole)
    assert PromptStore.open(store.root).served("x").aliases == {"beta": 2}


def test_states_of_before_they_had_a_hash_are_read(store):
    store.add("x", fake(1))
    file = store.root / "served" / "names" / "x" / "served.json"
    state = json.loads(file.read_bytes())
    del state["state_sha256"]
    file.write_text(json.dumps(state))
    again = PromptStore.open(store.root)
    assert again.served("x").current.number == 1
    assert again.add("x", fake(2)).number == 2


def test_nobody_goes_back_to_a_version_that_is_damaged(store):
    for number in range(3):
        store.add("x", fake(number))
    (store.root / "served" / "names" / "x" / "2" / TENSORS).write_bytes(b"another")
    with pytest.raises(ConfigError, match="x@2 is damaged"):
        store.roll_back("x", 2)
    assert store.roll_back("x").number == 1  # the last that is whole
    with pytest.raises(ArtefactError, match="x@2 was changed after it was stored"):
        read_version(store.resolve("x@2"))


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_state_that_is_no_plain_file_is_damaged_and_is_not_read(store, kind):
    store.add("x", fake(1))
    store.add("y", fake(2))
    _in_place(store.root / "served" / "names" / "x" / journal.STATE, kind)
    again = PromptStore.open(store.root)
    assert again.names() == ["y"]
    assert "no plain file" in again.damaged["x"]


@pytest.mark.parametrize("record", ["pipe", "[" * 100_000])
def test_a_record_that_cannot_be_read_says_no_model_and_holds_no_start_up(store, record):
    file = store.add("x", fake(1)).folder / RECORD
    if record == "pipe":
        _in_place(file, record)
    else:
        file.write_text(record)
    result = CliRunner().invoke(cli, ["serve", str(store.root)])
    assert isinstance(result.exception, ConfigError) and "give --model" in str(result.exception)


def _in_place(file, kind):
    """Put a pipe, which is never written to, or an endless device where a file was."""
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")


def test_what_training_wrote_and_cannot_be_read_stops_no_other(tmp_path):
    for name in ("good", "pipe"):
        (tmp_path / name).mkdir()
        for file, data in fake(1).items():
            (tmp_path / name / file).write_bytes(b'{"form": "soft"}' if file == RECORD else data)
    (tmp_path / "pipe" / TENSORS).unlink()
    os.mkfifo(tmp_path / "pipe" / TENSORS)
    store = PromptStore.open(tmp_path)
    assert store.names() == ["good"]
    assert "no plain file" in store.damaged["pipe"]


@pytest.mark.parametrize("inside", [".", "artefacts/good"])
def test_the_folder_that_one_is_in_is_served(tmp_path, monkeypatch, inside):
    folder = tmp_path / "artefacts" / "good"
    folder.mkdir(parents=True)
    for file, data in fake(1).items():
        (folder / file).write_bytes(data)
    monkeypatch.chdir(tmp_path / inside)
    assert PromptStore.open(".").names() == ["good"]
