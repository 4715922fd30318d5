"""An artefact's folder as one file, checked before anything of it is stored or loaded."""

import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from foreword.core.artefact import CARD, RECORD, TENSORS, Artefact
from foreword.errors import ArtefactError

LIMIT = 2**26  # bytes unpacked
MEMBERS = 32
FILES = (TENSORS, RECORD, CARD)
NEEDED = (TENSORS, RECORD)
DEEPEST, LONGEST = 32, 2**20  # levels and bytes of the record
SKIPPED = ("__MACOSX",)


def read_archive(data: bytes, *, limit: int = LIMIT) -> dict[str, bytes]:
    """The files of one artefact folder in a tar, tar.gz or zip; no more than the limit is ever unpacked.

    Raises: ArtefactError that says what does not belong there.
    """
    members = _zipped(data, limit) if data[:4] == b"PK\x03\x04" else _tarred(data, limit)
    found: dict[str, bytes] = {}
    folders: set[str] = set()
    try:
        for name, content in members:
            path = PurePosixPath(name)
            if path.parts[:1] in [(s,) for s in SKIPPED] or path.name.startswith("._"):
                continue
            if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or len(path.parts) > 2:
                raise ArtefactError(f"The archive's member {name[:200]!r} lies outside of one artefact folder.")
            if path.name not in FILES:
                raise ArtefactError(f"The archive has {name[:200]!r}; an artefact has {', '.join(FILES)} alone.")
            if path.name in found:
                raise ArtefactError(f"The archive has {path.name} twice.")
            folders.add(str(path.parent))
            found[path.name] = content
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error, lzma.LZMAError, RuntimeError,
            NotImplementedError, ValueError) as error:  # fmt: skip
        raise ArtefactError(f"The archive cannot be read ({type(error).__name__}: {str(error)[:200]}).") from None
    if len(folders) > 1:
        raise ArtefactError(f"The archive has files of {len(folders)} folders; send one artefact.")
    absent = [name for name in NEEDED if name not in found]
    if absent:
        raise ArtefactError(f"The archive has no {' and no '.join(absent)}; send the folder of an artefact.")
    return found


def pack_archive(folder: str | Path) -> bytes:
    """A folder's artefact as a tar.gz; the same bytes every time."""
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
    """The files and the artefact that they are: hash, names, sizes, dtypes and finiteness checked.

    Raises: ArtefactError. Whether it fits a model is that model's to say.
    """
    contents = read_archive(data, limit=limit)
    _check_record(contents[RECORD])
    return contents, Artefact.read(contents, "the archive")


def _tarred(data: bytes, limit: int) -> Iterator[tuple[str, bytes]]:
    raw: io.BufferedIOBase = io.BytesIO(data)
    if data[:2] == b"\x1f\x8b":
        raw = _Bounded(gzip.GzipFile(fileobj=raw), limit + MEMBERS * 4096)
    left = limit
    # A stream, so that nothing is read twice and nothing is sought.
    with tarfile.open(fileobj=raw, mode="r|") as archive:
        for number, member in enumerate(archive):
            if number >= MEMBERS:
                raise ArtefactError(f"The archive has more than {MEMBERS} members; an artefact has {len(FILES)} files.")
            if member.isdir():
                continue
            if not member.isreg() or member.sparse is not None:
                raise ArtefactError(f"The archive's member {member.name[:200]!r} is not a plain file.")
            left -= member.size
            if left < 0:
                raise ArtefactError(f"The archive unpacks to more than the {limit:,} bytes allowed.")
            file = archive.extractfile(member)
            assert file is not None, "plain files have content"
            content = file.read()
            if len(content) != member.size:
                raise ArtefactError(f"The archive ends within {member.name[:200]!r}.")
            yield member.name, content


def _zipped(data: bytes, limit: int) -> Iterator[tuple[str, bytes]]:
    left = limit
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > MEMBERS:
            raise ArtefactError(f"The archive has {len(members)} members; an artefact has {len(FILES)} files.")
        for member in members:
            if member.is_dir():
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise ArtefactError(f"The archive's member {member.filename[:200]!r} is not a plain file.")
            if member.flag_bits & 1:
                raise ArtefactError("The archive is encrypted; send it as it is.")
            with archive.open(member) as file:
                content = file.read(left + 1)
            left -= len(content)
            if left < 0:
                raise ArtefactError(f"The archive unpacks to more than the {limit:,} bytes allowed.")
            yield member.filename, content


class _Bounded(io.BufferedIOBase):
    """A stream that gives so many bytes at most, whatever its headers say."""

    def __init__(self, file: gzip.GzipFile, limit: int):
        self.file, self.left, self.limit = file, limit, limit

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self.left + 1 if size is None or size < 0 else min(size, self.left + 1)
        content = self.file.read(wanted)
        self.left -= len(content)
        if self.left < 0:
            raise ArtefactError(f"The archive unpacks to more than the {self.limit:,} bytes allowed.")
        return content


def _check_record(record: bytes) -> None:
    """Raises: ArtefactError for JSON so long or deep that reading it would take all there is."""
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
