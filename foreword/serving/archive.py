"""Pack and read an artefact's folder as one file, checked before anything of it is stored or loaded.

Tar files are walked here, header by header: `tarfile` follows headers in ways that take minutes or recurse, and these
ways depend on the version of Python. All that an artefact needs is three plain files.
"""

import gzip
import io
import itertools
import json
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from foreword.core.artefact import CARD, RECORD, TENSORS, Artefact
from foreword.core.record import DEEPEST
from foreword.errors import ArtefactError, ForewordError

LIMIT = 2**26  # bytes unpacked
MEMBERS = 32
FILES = (TENSORS, RECORD, CARD)
NEEDED = (TENSORS, RECORD)
LONGEST = 2**20  # bytes of the record
LABELS, WORDS, NAMED = 4096, 64, 256  # labels, words of each, and characters of a label, a word or a field
TEMPLATE = 2**16  # characters
SKIPPED = "__MACOSX"
BLOCK, HEADER = 512, 2**16  # bytes of a tar's blocks, and of the longest header that may follow one
LONG_NAME, EXTENDED = tarfile.GNUTYPE_LONGNAME, (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
ASIDE = (LONG_NAME, *EXTENDED, tarfile.XGLTYPE)


def read_archive(data: bytes, *, limit: int = LIMIT) -> dict[str, bytes]:
    """Return the files of one artefact folder in a tar, tar.gz or zip; no more than the limit is ever unpacked.

    Raises: ArtefactError that says what does not belong in the archive.
    """
    members = _zipped(data, limit) if data[:4] == b"PK\x03\x04" else _tarred(data, limit)
    results: dict[str, bytes] = {}
    folders: set[str] = set()
    try:
        for name, content in members:
            path = PurePosixPath(name)
            if path.parts[:1] == (SKIPPED,) or path.name.startswith("._"):
                continue
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or len(path.parts) > 2:
                raise ArtefactError(f"The archive's member {_short(repr(name))} lies outside of one artefact folder.")
            if path.name not in FILES:
                raise ArtefactError(f"The archive has {_short(repr(name))}; an artefact has {', '.join(FILES)} alone.")
            if path.name in results:
                raise ArtefactError(f"The archive has {path.name} twice.")
            folders.add(str(path.parent))
            results[path.name] = content
    except ArtefactError:
        raise
    except Exception as error:  # whatever a parser of others' bytes may end with
        raise ArtefactError(f"The archive cannot be read ({type(error).__name__}: {str(error)[:200]}).") from None
    if len(folders) > 1:
        raise ArtefactError(f"The archive has files of {len(folders)} folders; send one artefact.")
    absent = [name for name in NEEDED if name not in results]
    if absent:
        raise ArtefactError(f"The archive has no {' and no '.join(absent)}; send the folder of an artefact.")
    return results


def pack_archive(folder: str | Path) -> bytes:
    """Return a folder's artefact as a tar.gz; the same files give the same bytes every time."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name in FILES:
            file = Path(folder) / name
            if not file.is_file():
                if name in NEEDED:
                    raise ArtefactError(f"{folder} is not an artefact: it has no {name}.")
                continue
            content = file.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def read_upload(data: bytes, *, limit: int = LIMIT) -> tuple[dict[str, bytes], Artefact]:
    """Return an upload's files and their artefact, with hash, names, sizes, dtypes and finiteness checked.

    Raises: ArtefactError. The check that the artefact fits a model is made with that model.
    """
    contents = read_archive(data, limit=limit)
    _check_size(contents[RECORD])
    try:
        artefact = Artefact.read(contents, "the archive")
        _check_lengths(artefact)
    except ForewordError as error:
        raise ArtefactError(_short(str(error))) from None
    return contents, artefact


def _tarred(data: bytes, limit: int) -> Iterator[tuple[str, bytes]]:
    raw = _unzipped(data, limit) if data[:2] == b"\x1f\x8b" else data
    left, at, name = limit, 0, None
    for number in itertools.count():
        header = raw[at : at + BLOCK]
        if not header.strip(b"\0"):
            if not number:
                raise ArtefactError("The archive is empty, or no tar, tar.gz or zip file.")
            return
        if number >= MEMBERS:
            raise ArtefactError(f"The archive has more than {MEMBERS} members; an artefact has {len(FILES)} files.")
        member = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        start, end = at + BLOCK, at + BLOCK + member.size
        if not start <= end <= len(raw):
            raise ArtefactError(f"The archive ends within {_short(repr(member.name))}.")
        at = end + -member.size % BLOCK
        if member.type in ASIDE:
            if member.size > HEADER:
                raise ArtefactError(f"The archive has a header of {member.size:,} bytes; {HEADER:,} are allowed.")
            name = _told_name(member.type, raw[start:end]) or name
            continue
        name, known = None, name or member.name
        if member.type == tarfile.DIRTYPE:
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ArtefactError(f"The archive's member {_short(repr(known))} is not a plain file.")
        left -= member.size
        if left < 0:
            raise _too_large(limit)
        yield known, raw[start:end]


def _told_name(kind: bytes, told: bytes) -> str | None:
    """Return the name of the next member from an extra header, which holds names too long for a member's header; else
    None."""
    if kind == LONG_NAME:
        return told.rstrip(b"\0").decode("utf-8", "replace")
    at, name = 0, None
    while kind in EXTENDED and at < len(told):
        space = told.index(b" ", at, at + 8)
        size = int(told[at:space])
        key, _, value = told[space + 1 : at + size - 1].partition(b"=")
        if size <= space - at or key == b"size" or key.startswith(b"GNU.sparse"):
            raise ArtefactError("The archive has a file that is sparse or of a size beyond all limits.")
        name = value.decode("utf-8", "replace") if key == b"path" else name
        at += size
    return name


def _unzipped(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    most = limit + MEMBERS * 2 * BLOCK + HEADER  # with the headers of its members
    raw = stream.decompress(data, most + 1)
    if len(raw) > most:
        raise _too_large(limit)
    if not stream.eof:  # after which the sum was found right
        raise ArtefactError("The archive is cut off.")
    if stream.unused_data.strip(b"\0"):
        raise ArtefactError("The archive has more after its end.")
    return raw


def _zipped(data: bytes, limit: int) -> Iterator[tuple[str, bytes]]:
    left = limit
    # Before the directory is read, each of whose entries begins so; a file may have the four bytes by chance.
    if data.count(b"PK\x01\x02") > 2 * MEMBERS:
        raise ArtefactError(f"The archive has more than {MEMBERS} members; an artefact has {len(FILES)} files.")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > MEMBERS:
            raise ArtefactError(f"The archive has more than {MEMBERS} members; an artefact has {len(FILES)} files.")
        for member in members:
            if member.is_dir():
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise ArtefactError(f"The archive's member {_short(repr(member.filename))} is not a plain file.")
            if member.flag_bits & 1:
                raise ArtefactError("The archive is encrypted; send it as it is.")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # The others are unpacked whole before anybody can see how much it is.
                raise ArtefactError("The archive is packed in an unusual way; make a zip with deflate, or a tar.gz.")
            with archive.open(member) as file:
                content = file.read(left + 1)
            left -= len(content)
            if left < 0:
                raise _too_large(limit)
            yield member.filename, content


def _too_large(limit: int) -> ArtefactError:
    return ArtefactError(f"The archive unpacks to more than the {limit:,} bytes allowed.")


def _short(text: str) -> str:
    """Cut a text to 300 characters at most: errors may quote what was sent, but not all of it."""
    return text if len(text) <= 300 else text[:290] + " ... "


def _check_size(record: bytes) -> None:
    """Check the length and depth of a record. Raises: ArtefactError for JSON so long or deep that reading it would take
    all memory or stack."""
    if len(record) > LONGEST:
        raise ArtefactError(f"{RECORD} has {len(record):,} bytes; {LONGEST:,} are allowed.")
    depth = deepest = 0
    inside = escaped = False
    for byte in record:
        if inside:
            inside = escaped or byte != 0x22
            escaped = byte == 0x5C and not escaped
        elif byte == 0x22:
            inside = True
        elif byte in (0x5B, 0x7B):
            depth += 1
            deepest = max(deepest, depth)
        elif byte in (0x5D, 0x7D):
            depth -= 1
    if deepest > DEEPEST:
        raise ArtefactError(f"{RECORD} is {deepest} levels deep; {DEEPEST} are allowed.")


def _check_lengths(artefact: Artefact) -> None:
    """Check that one prompt asks for no more than a server gives to each. Raises: ArtefactError."""
    form = artefact.format
    rules = {
        "config": _is_finite([artefact.config, artefact.recipe, artefact.trace]),
        "fields": _are_short(artefact.fields, NAMED),
        "model": _are_short([str(artefact.model["name"]), str(artefact.model["kind"])], 2, 4096),
        "template": len(json.dumps(form.template.source, ensure_ascii=False)) <= TEMPLATE,
        "chat_options": len(json.dumps(form.chat_options.to_json(), ensure_ascii=False)) <= TEMPLATE,
        "labels": _are_short(form.labels, LABELS),
        "words": all(_are_short(words, WORDS) for words in form.words),
    }
    wrong = [name for name, right in rules.items() if not right]
    if wrong:
        raise ArtefactError(f"{RECORD} has {' and '.join(wrong)} of a length or a number that is not served.")


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _are_short(words: Sequence[str], most: int, longest: int = NAMED) -> bool:
    return len(words) <= most and all(len(word) <= longest for word in words)
