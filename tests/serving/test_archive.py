"""Archives as attackers make them. python -m pytest tests/serving/test_archive.py"""

import gzip
import hashlib
import io
import json
import random
import struct
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from foreword.core.artefact import CARD, RECORD, TENSORS
from foreword.errors import ArtefactError
from foreword.models.load import load
from foreword.serving.archive import pack_archive, read_archive, read_upload
from tests.seeds import new_seed
from tests.serving.made import artefact

GOOD = {RECORD: b"{}", TENSORS: b"x"}


def tarred(members, packed=True) -> bytes:
    """Of names with bytes, or TarInfos."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if packed else "w") as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(members, how: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("make", [tarred, lambda m: tarred(m, packed=False), zipped])
@pytest.mark.parametrize("folder", ["", "x/", "./"])
def test_what_people_send_is_read(make, folder):
    members = [(folder + name, data) for name, data in GOOD.items()]
    members += [("__MACOSX/._x", b"junk"), (folder + f"._{RECORD}", b"junk")]
    assert read_archive(make(members)) == GOOD


def test_a_folder_packs_to_the_same_bytes_and_back(tmp_path):
    folder = artefact(load("foreword-tiny"), "ahead").save(tmp_path / "x")
    data = pack_archive(folder)
    assert data == pack_archive(folder)
    assert read_archive(data) == {name: (folder / name).read_bytes() for name in (TENSORS, RECORD, CARD)}
    contents, made = read_upload(data)
    assert made.form == "soft"
    assert contents[TENSORS] == (folder / TENSORS).read_bytes()


def told(headers: dict[str, str]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(TENSORS)
    info.pax_headers = headers
    return info


ATTACKS = {
    "absolute": (tarred([(f"/etc/{RECORD}", b"{}"), (TENSORS, b"x")]), "outside"),
    "upwards": (tarred([(f"../{RECORD}", b"{}"), (TENSORS, b"x")]), "outside"),
    "upwards in zip": (zipped([(f"x/../../{RECORD}", b"{}"), (TENSORS, b"x")]), "outside"),
    "backslash": (zipped([(f"..\\{RECORD}", b"{}"), (TENSORS, b"x")]), "outside"),
    "deep": (tarred([(f"a/b/{RECORD}", b"{}"), (TENSORS, b"x")]), "outside"),
    "symlink": (tarred([(special(TENSORS, tarfile.SYMTYPE, "/etc/passwd"), b""), (RECORD, b"{}")]), "not a plain file"),
    "hard link": (tarred([(special(TENSORS, tarfile.LNKTYPE, RECORD), b""), (RECORD, b"{}")]), "not a plain file"),
    "device": (tarred([(special(TENSORS, tarfile.CHRTYPE), b""), (RECORD, b"{}")]), "not a plain file"),
    "fifo": (tarred([(special(TENSORS, tarfile.FIFOTYPE), b""), (RECORD, b"{}")]), "not a plain file"),
    "twice": (tarred([(RECORD, b"{}"), (RECORD, b"[]"), (TENSORS, b"x")]), "twice"),
    "two folders": (tarred([(f"a/{RECORD}", b"{}"), (f"b/{TENSORS}", b"x")]), "2 folders"),
    "pickle": (tarred([*GOOD.items(), ("model.pkl", b"x")]), "has 'model.pkl'"),
    "no tensors": (tarred([(RECORD, b"{}")]), "no prompt.safetensors"),
    "many": (tarred([(f"__MACOSX/{n}", b"") for n in range(100)]), "more than 32 members"),
    "many in zip": (zipped([(f"__MACOSX/{n}", b"") for n in range(100)]), "more than 32 members"),
    "sparse": (tarred([(special(TENSORS, tarfile.GNUTYPE_SPARSE), b""), (RECORD, b"{}")]), "not a plain file"),
    "sparse by a header": (tarred([(told({"GNU.sparse.major": "1"}), b""), (RECORD, b"{}")]), "sparse"),
    "another size": (tarred([(told({"size": "9" * 12}), b""), (RECORD, b"{}")]), "sparse or of a size"),
    "upwards by a header": (tarred([(told({"path": f"../{TENSORS}"}), b""), (RECORD, b"{}")]), "outside"),
    "nothing": (b"", "empty, or no tar"),
    "zeros": (bytes(2048), "empty, or no tar"),
    "text": (b"hello, this is no archive at all" * 40, "cannot be read"),
    "half": (tarred(GOOD.items())[:60], "cut off"),
    "half a tar": (tarred(GOOD.items(), False)[:1200], "cannot be read"),
    "no bytes of a file": (tarred(GOOD.items(), False)[:1536], "ends within"),
    "more after it": (tarred(GOOD.items()) * 2, "more after its end"),
    "half a zip": (zipped(GOOD.items())[:90], "cannot be read"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_does_not_belong_is_refused_in_a_sentence(name):
    data, match = ATTACKS[name]
    with pytest.raises(ArtefactError, match=match):
        read_archive(data)


def test_a_zip_whose_link_is_a_file_is_refused():
    info = zipfile.ZipInfo(TENSORS)
    info.external_attr = 0o120777 << 16
    with pytest.raises(ArtefactError, match="not a plain file"):
        read_archive(zipped([(info, "/etc/passwd"), (RECORD, b"{}")]))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_longest_names_are_read_as_tar_writes_them(form):
    """127 characters and a file's name are more than a tar's header holds."""
    out = io.BytesIO()
    folder = "é" * 60 if form != tarfile.USTAR_FORMAT else "x" * 127
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        archive.addfile(special(folder, tarfile.DIRTYPE))
        for name, data in GOOD.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size, info.mtime = len(data), 1.5
            archive.addfile(info, io.BytesIO(data))
    assert read_archive(out.getvalue()) == GOOD
    out.seek(0)
    with tarfile.open(fileobj=out, mode="a", format=form) as archive:
        archive.addfile(tarfile.TarInfo(CARD))
    with pytest.raises(ArtefactError, match="2 folders"):  # a long name is of one member alone
        read_archive(out.getvalue())


def test_bombs_stop_at_the_limit_whatever_they_claim():
    zeros = bytes(50_000_000)
    small = tarred([(RECORD, b"{}"), (TENSORS, zeros)])
    assert len(small) < 100_000
    lzma, bzip2 = (zipped([(RECORD, b"{}"), (TENSORS, zeros)], how) for how in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
    for data, match in (
        (small, "unpacks to more"),
        (zipped([(RECORD, b"{}"), (TENSORS, zeros)]), "unpacks to more"),
        (gzip.compress(tarred([(TENSORS, zeros)], False)), "unpacks to more"),
        (lzma, "unusual way"),  # which zipfile unpacks whole, whatever it is asked for
        (bzip2, "unusual way"),
    ):
        tracemalloc.start()
        with pytest.raises(ArtefactError, match=match):
            read_archive(data, limit=1_000_000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8_000_000
    lying = bytearray(zipped([(RECORD, b"{}"), (TENSORS, zeros)]))
    at = lying.rindex(b"PK\x01\x02")
    lying[at + 24 : at + 28] = struct.pack("<I", 5)  # the size that the directory tells
    with pytest.raises(ArtefactError):
        read_archive(bytes(lying), limit=1_000_000)


def test_headers_that_take_minutes_elsewhere_take_none_here():
    """Digits that a pattern reads again and again, headers in headers, negative sizes, a directory of a million."""
    began = time.process_time()
    digits = special("x", tarfile.XHDTYPE)
    digits.size = 60_000
    one = special("x", tarfile.XHDTYPE)
    one.size = 12
    chain = (one.tobuf(tarfile.USTAR_FORMAT) + b"12 path=abc\n".ljust(512, b"\0")) * 5000
    back = bytearray(special(TENSORS, tarfile.REGTYPE).tobuf(tarfile.GNU_FORMAT))
    back[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024
    back[148:156] = b"%06o\0 " % (256 + sum(back[:148]) + sum(back[156:512]))
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, *[0] * 8, 1, *[0] * 6) + b"a"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(entry) * 10**6, 4, 0)
    for data, match in (
        (digits.tobuf(tarfile.USTAR_FORMAT) + b"1" * 60_000 + bytes(1024), "cannot be read"),
        (chain, "more than 32 members"),
        (bytes(back) + bytes(1024), "ends within"),
        (b"PK\x03\x04" + entry * 10**6 + end, "more than 32 members"),
        (b"".join(gzip.compress(b"") for _ in range(10**5)), "more after its end"),
    ):
        with pytest.raises(ArtefactError, match=match):
            read_archive(data)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_broken_bytes_give_a_sentence_or_files_within_bounds(kind):
    draw = random.Random(new_seed(2**32))
    members = [(f"x/{name}", data * 50) for name, data in GOOD.items()] + [(told({"path": "x/" + CARD}), b"")]
    whole = zipped(members[:2]) if kind == "zip" else tarred(members, packed=False)
    outcomes, longest = set(), 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            at, size = draw.randrange(len(data) + 1), draw.choice((1, 1, 1, 2, 8, 512))
            data[at : at + size] = draw.choice((draw.randbytes(size), b"", b"\xff" * size, b"\0" * size, b"9" * size))
        if kind != "zip" and draw.random() < 0.7:  # headers whose sums are right are read further
            for start in range(0, len(data) - 511, 512):
                data[start + 148 : start + 156] = b"%06o\0 " % (
                    256 + sum(data[start : start + 148]) + sum(data[start + 156 : start + 512])
                )
        sent = bytes(data)
        if kind == "tar.gz":
            sent = gzip.compress(sent)
            sent = sent if draw.random() < 0.8 else sent[: draw.randrange(len(sent))]
        try:
            found = read_archive(sent, limit=10_000)
        except ArtefactError as error:
            outcomes.add("refused")
            longest = max(longest, len(str(error)))
        else:
            assert {RECORD, TENSORS} <= found.keys() <= {RECORD, TENSORS, CARD}
            assert sum(map(len, found.values())) <= 10_000
            outcomes.add("read")
    assert outcomes == {"refused", "read"}
    assert longest < 500


def test_sums_and_passwords_are_looked_at():
    data = bytearray(zipped(GOOD.items()))
    at = data.rindex(b"PK\x01\x02")
    wrong = bytearray(data)
    wrong[at + 16] ^= 1  # of the last member's sum
    with pytest.raises(ArtefactError, match="CRC"):
        read_archive(bytes(wrong))
    locked = bytearray(data)
    locked[at + 8] |= 1
    with pytest.raises(ArtefactError, match="encrypted"):
        read_archive(bytes(locked))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return artefact(load("foreword-tiny"), "ahead").save(tmp_path_factory.mktemp("good") / "x")


def changed(folder: Path, tensors: bytes | None = None, **record: object) -> bytes:
    """A good artefact with parts of its record replaced; `format` adds to what there is."""
    made = json.loads((folder / RECORD).read_text())
    data = (folder / TENSORS).read_bytes() if tensors is None else tensors
    record["format"] = {**made["format"], **record.get("format", {})}
    made |= {"tensors_sha256": hashlib.sha256(data).hexdigest(), **record}
    del made["record_sha256"]
    made["record_sha256"] = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    return tarred([(RECORD, json.dumps(made).encode()), (TENSORS, data)])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tensors": save({"embed": torch.full((3, 32), torch.nan)})}, "finite|NaN|not a number"),
        ({"tensors": save({"embed": torch.full((3, 32), torch.inf)})}, "finite|inf|not a number"),
        ({"tensors": save({"embed": torch.zeros(3, 32, dtype=torch.int64)})}, "int64|dtype"),
        ({"tensors": save({"other": torch.zeros(3, 32)})}, "does not hold|embed"),
        ({"tensors": struct.pack("<Q", 2**62) + b"{}"}, "does not hold|header"),
        ({"tensors": b"\x80\x04\x95pickle"}, "does not hold|header"),
        ({"schema": 99}, "schema 99"),
        ({"form": "pickle"}, "unknown"),
        ({"value": []}, "does not hold"),
        ({"format": {"template": 3}}, "does not hold|template"),
    ],
)
def test_records_and_tensors_that_lie_are_refused(good, change, match):
    with pytest.raises(ArtefactError, match=match):
        read_upload(changed(good, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"method": {}}, {"config": []}, {"config": {"x": float("nan")}}, {"config": {"x": float("inf")}}, {"seed": "x"},
        {"seed": True}, {"seed": 2**64}, {"numbers_trained": -1}, {"fields": [["text"]]}, {"fields": "text"},
        {"model": []}, {"model": {}}, {"model": {"name": 3, "kind": "masked"}}, {"fingerprint": []},
        {"fingerprint": {}}, {"fingerprint": {"tokenizer": 1, "shape": 1, "dtype": 1}}, {"metrics": []}, {"parent": 3},
        {"recipe": []}, {"hashes": 0}, {"metrics": {"\ud800": 1}}, {"format": {"labels": "ab"}},
        {"format": {"labels": ["no", "no"]}}, {"format": {"labels": ["no", 3]}}, {"format": {"labels": ["\ud800", ""]}},
        {"format": {"labels": ["x" * 1000, "y"]}}, {"format": {"words": [["bad"]]}}, {"format": {"words": ["a", "b"]}},
        {"format": {"words": [["\ud800"], ["x"]]}}, {"format": {"words": [[""], ["x"]]}},
        {"format": {"words": [["x"] * 1000, ["y"]]}}, {"format": {"template": "{soft:3}\ud800{text|shorten}{mask}"}},
        {"format": {"template": "{soft:3}{text}{mask}" + "word " * 20_000}}, {"format": {"truncate": "evil"}},
        {"format": {"max_length": "x"}}, {"format": {"max_length": 1.5}}, {"format": {"max_length": 10**30}},
        {"format": {"soft_first": "x"}}, {"format": {"pieces": 3}},
        {"format": {"labels": [f"l{n}" for n in range(5000)], "words": [["w"]] * 5000}},
    ],
    ids=lambda change: json.dumps(change)[:60],
)  # fmt: skip
def test_parts_of_a_record_are_what_they_are_taken_for(good, change):
    with pytest.raises(ArtefactError) as caught:
        read_upload(changed(good, **change))
    assert len(str(caught.value)) < 500


def test_a_record_may_say_what_training_writes(good):
    """The other side of the bounds above."""
    for change in ({"metrics": {"x": float("nan")}}, {"seed": 2**32}, {"format": {"max_length": 100}}, {"parent": "x"}):
        assert read_upload(changed(good, **change))[1].form == "soft"


@pytest.mark.parametrize("sealed", [True, False])
def test_a_record_that_was_changed_says_so_unless_it_is_of_before_there_was_a_hash(good, sealed):
    made = json.loads((good / RECORD).read_text())
    made["seed"] += 1
    if not sealed:
        del made["record_sha256"]
    data = tarred([(RECORD, json.dumps(made).encode()), (TENSORS, (good / TENSORS).read_bytes())])
    if sealed:
        with pytest.raises(ArtefactError, match="the record was changed after it was written"):
            read_upload(data)
    else:
        assert read_upload(data)[1].seed == made["seed"]


def test_a_damaged_name_of_the_hash_is_no_record_without_one(good):
    text = (good / RECORD).read_text().replace("record_sha256", "record_sha257")
    with pytest.raises(ArtefactError, match="parts that none has"):
        read_upload(tarred([(RECORD, text.encode()), (TENSORS, (good / TENSORS).read_bytes())]))


@pytest.mark.parametrize(
    "change",
    [
        {"format": {"temperature": 10**400}}, {"format": {"temperature": 1e-320}}, {"format": {"shift": [1, 10**400]}},
        {"format": {"shift": [1e308, -1e308]}}, {"format": {"decoding": {"length_penalty": 10**400}}},
        {"format": {"decoding": {"max_new_tokens": 10**400}}}, {"format": {"decoding": {"unknown": 1}}},
        {"tensors": save({"embed": torch.zeros(3, 32).to(torch.float8_e4m3fn)})}, {"tensors": save({})},
        {"tensors": save({"embed": torch.zeros(96)}), "value": {"shape": [96]}},
        {"tensors": save({"embed": torch.zeros(3, 32), "more": torch.zeros(1)})}, {"seed": 10**400},
        {"tensors": save({"embed": torch.zeros(3, 32), **{f"x{n}": torch.zeros(0) for n in range(1000)}})},
    ],
    ids=lambda change: repr(change)[:50],
)  # fmt: skip
def test_numbers_and_tensors_beyond_all_use_are_refused(good, change):
    with pytest.raises(ArtefactError) as caught:
        read_upload(changed(good, **change))
    assert len(str(caught.value)) < 500
    assert "Error" not in str(caught.value)


def test_records_that_would_take_all_there_is(tmp_path):
    for record in (b"[" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b'"' + b"a" * 2_000_000 + b'"'):
        with pytest.raises(ArtefactError, match=r"levels deep|bytes"):
            read_upload(tarred([(RECORD, record), (TENSORS, b"x")]))
    brackets = json.dumps({"text": "[" * 1000 + '\\"'}).encode()
    with pytest.raises(ArtefactError, match="schema"):  # those in a text do not count
        read_upload(tarred([(RECORD, brackets), (TENSORS, b"x")]))
