"""Bearer keys: who may use which prompts, and who may change which. The file has their hashes alone.

A key is `fw_ID_SECRET`. The secret is 256 random bits, which nobody can guess whatever the hash costs, so that a plain
SHA-256 serves as well as a slow one would for a password, and a request need not wait for it.
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, final

from foreword.errors import ConfigError

FILE = "keys.json"
PREFIX = "fw"


@final
@dataclass(frozen=True)
class Key:
    """Patterns (`acme-*`) of the names that may be used, and of those that may be added, changed and removed.

    The two are apart: who may change a prompt may not use it, unless told so as well.
    """

    id: str
    infer: tuple[str, ...] = ()
    administer: tuple[str, ...] = ()
    note: str = ""
    created: str = ""

    def may_infer(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.infer)

    def may_administer(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.administer)


EVERYONE = Key("everyone", ("*",), ("*",))
NOBODY = hashlib.sha256(b"").hexdigest()


@final
class KeyRing:
    """The keys of a store, read again whenever their file changes: a key that is removed is refused at once."""

    def __init__(self, file: Path):
        self.file = file
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, tuple[str, Key]] = {}

    @staticmethod
    def open(root: str | Path) -> "KeyRing":
        """The keys of the store in this folder; none where it has no file of them. Raises: ConfigError."""
        ring = KeyRing(Path(root) / "served" / FILE)
        ring._read()
        return ring

    @property
    def empty(self) -> bool:
        return not self._read()

    def list(self) -> list[Key]:
        return [key for _, key in self._read().values()]

    def find(self, token: str | None) -> Key | None:
        """Whose token this is; the same work whether its id is known or not."""
        mark, _, rest = (token or "").partition("_")
        id, _, secret = rest.partition("_")
        wanted, key = self._read().get(id, (NOBODY, None))
        given = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        same = hmac.compare_digest(given, wanted)
        return key if same and mark == PREFIX and secret else None

    def add(self, infer: Sequence[str], administer: Sequence[str] = (), note: str = "") -> str:
        """A new key's token, which is told here and never again. Raises: ConfigError for a key that may do nothing."""
        if not infer and not administer:
            raise ConfigError("A key has to allow something: name patterns to infer with, or to administer.")
        id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {
            "id": id, "hash": hashlib.sha256(secret.encode()).hexdigest(), "infer": [*infer],
            "administer": [*administer], "note": note, "created": created,
        }  # fmt: skip
        self._change(lambda entries: [*entries, entry])
        return f"{PREFIX}_{id}_{secret}"

    def remove(self, id: str) -> None:
        """Raises: ConfigError where no key has this id."""
        if id not in self._read():
            raise ConfigError(f"There is no key with the id {id!r}; `foreword keys list` names them.")
        self._change(lambda entries: [entry for entry in entries if entry["id"] != id])

    def _change(self, change: Any) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with (self.file.parent / ".lock").open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            entries = json.loads(self.file.read_text()) if self.file.exists() else []
            waiting = self.file.with_name(f".{FILE}.writing")
            waiting.unlink(missing_ok=True)
            with os.fdopen(os.open(waiting, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                json.dump(change(entries), out, indent=1)
                out.flush()
                os.fsync(out.fileno())
            waiting.replace(self.file)

    def _read(self) -> dict[str, tuple[str, Key]]:
        with self._lock:
            try:
                told = self.file.stat()
                stamp = (told.st_mtime_ns, told.st_ino)
                if stamp != self._stamp:
                    entries = json.loads(self.file.read_text())
                    self._keys = {entry["id"]: (entry["hash"], _key(entry)) for entry in entries}
                    self._stamp = stamp
            except FileNotFoundError:
                # Keys that there were are not forgotten because their file is gone: nobody gets in without one.
                if self._stamp is not None:
                    return self._keys
                return {}
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise ConfigError(f"{self.file} cannot be read as keys ({error}); mend it or take it away.") from None
            return self._keys


def _key(entry: dict[str, Any]) -> Key:
    return Key(
        entry["id"], tuple(entry["infer"]), tuple(entry["administer"]), entry.get("note", ""), entry.get("created", "")
    )
