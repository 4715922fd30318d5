"""Hold bearer keys: which key may use which prompts, and which may change which. The file has their hashes alone.

A key is `fw_ID_SECRET`. The secret is 256 random bits, which nobody can guess however cheap the hash is, so that a
plain SHA-256 serves as well as a slow one would for a password, and a request need not wait for it.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, final

from foreword.core.plain import read_json
from foreword.errors import ConfigError
from foreword.serving.quota import NO_LIMITS, Quota

FILE = "keys.json"
Entries = list[dict[str, Any]]
RACY = 10**8  # nanoseconds within which a file may change again and look the same
PREFIX = "fw"


@final
@dataclass(frozen=True)
class Key:
    """Hold patterns (`acme-*`) of the names that a key may use, and of those that it may add, change and remove.

    The two are apart: a key that may change a prompt may use it only if a pattern allows that as well.
    """

    id: str
    infer: tuple[str, ...] = ()
    administer: tuple[str, ...] = ()
    note: str = ""
    created: str = ""
    quota: Quota = NO_LIMITS

    def may_infer(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.infer)

    def may_administer(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.administer)


EVERYONE = Key("everyone", ("*",), ("*",))
NOBODY = hashlib.sha256(b"").hexdigest()


@final
class KeyRing:
    """Hold the keys of a store, read again whenever their file changes: a key that is removed is refused at once."""

    def __init__(self, file: Path):
        self.file = file
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._found = False  # a file, once
        self._damage = ""
        self._keys: dict[str, tuple[str, Key]] = {}

    @staticmethod
    def open(root: str | Path) -> "KeyRing":
        """Return the keys of the store in this folder; none if it has no file of them. Raises: ConfigError."""
        ring = KeyRing(Path(root) / "served" / FILE)
        ring.list()
        return ring

    @property
    def empty(self) -> bool:
        """Return whether there never were keys. After the last key was removed, every client is refused, not
        admitted."""
        self._read()
        return not self._found

    def list(self) -> list[Key]:
        """Return all keys. Raises: ConfigError if the file is damaged."""
        self._read()
        if self._damage:
            raise ConfigError(f"{self.file} cannot be read as keys ({self._damage}); mend it or take it away.")
        return [key for _, key in self._keys.values()]

    def find(self, token: str | None) -> Key | None:
        """Return the key with this token, or None; the work is the same whether its id is known or not. A damaged file
        has no keys."""
        mark, _, rest = (token or "").partition("_")
        id, _, secret = rest.partition("_")
        wanted, key = self._read().get(id, (NOBODY, None))
        given = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        same = hmac.compare_digest(given, wanted)
        return key if same and mark == PREFIX and secret else None

    def add(
        self, infer: Sequence[str], administer: Sequence[str] = (), note: str = "", limits: Sequence[str] = ()
    ) -> str:
        """Add a key and return its token, which is never shown again. Raises: ConfigError for a key that may do
        nothing."""
        if not [*infer, *administer] or not all([*infer, *administer]):
            raise ConfigError("A key has to allow something: name patterns to infer with, or to administer.")
        quota = Quota().with_limits(limits)
        id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {
            "id": id, "hash": hashlib.sha256(secret.encode()).hexdigest(), "infer": [*infer],
            "administer": [*administer], "note": note, "created": created, "limits": quota.as_dict(),
        }  # fmt: skip
        self._change(lambda entries: [*entries, entry])
        return f"{PREFIX}_{id}_{secret}"

    def remove(self, id: str) -> None:
        """Remove a key. Raises: ConfigError if no key has this id."""

        def without(entries: Entries) -> Entries:
            removed = _entry(entries, id)
            return [entry for entry in entries if entry is not removed]

        self._change(without)

    def limit(self, id: str, limits: Sequence[str]) -> Quota:
        """Give a key other limits, `rows=100` or `rows=none`; return all that it has then. Raises: ConfigError."""
        changed = Quota()

        def limited(entries: Entries) -> Entries:
            nonlocal changed
            entry = _entry(entries, id)
            changed = _key(entry).quota.with_limits(limits)
            return [{**one, "limits": changed.as_dict()} if one is entry else one for one in entries]

        self._change(limited)
        return changed

    def _change(self, change: Callable[[Entries], Entries]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with (self.file.parent / ".lock").open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self.list()
            entries = read_json(self.file) if self.file.exists() else []
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
                stamp = (told.st_mtime_ns, told.st_ino, told.st_size)
                if stamp == self._stamp:
                    return self._keys
                self._found, self._damage = True, ""
                entries = read_json(self.file)
                self._keys = {entry["id"]: (_hash(entry), _key(entry)) for entry in entries}
            except FileNotFoundError:
                # Keys that there were are not forgotten because their file is gone: nobody gets in without one.
                return self._keys
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                self._found, self._stamp = True, None
                self._keys, self._damage = {}, f"{type(error).__name__}: {error}"
                return {}
            # A file that has just changed may change again within the clock's tick, and in the same place.
            self._stamp = stamp if abs(time.time_ns() - told.st_mtime_ns) > RACY else None
            return self._keys


def _key(entry: dict[str, Any]) -> Key:
    for patterns in (entry["infer"], entry["administer"]):
        # A string would be taken for patterns of one character each, and a star among them allows everything.
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise TypeError("infer and administer are lists of patterns")
    return Key(
        entry["id"], tuple(entry["infer"]), tuple(entry["administer"]), entry.get("note", ""), entry.get("created", ""),
        Quota.read(entry.get("limits", {})),
    )  # fmt: skip


def _entry(entries: Entries, id: str) -> dict[str, Any]:
    """Return the entry with this id. Raises: ConfigError if there is none; a text that is no id may be a key, which no
    error shows."""
    result = next((entry for entry in entries if entry["id"] == id), None)
    if result is None:
        shown = f"the id {id!r}" if re.fullmatch("[0-9a-f]{1,16}", id) else "that id (one has 16 characters of base 16)"
        raise ConfigError(f"There is no key with {shown}; `foreword keys list` names them.")
    return result


def _hash(entry: dict[str, Any]) -> str:
    if not re.fullmatch("[0-9a-f]{64}", entry["hash"]) or not isinstance(entry["id"], str):
        raise ValueError("a hash is 64 characters of base 16, and an id a string")
    return entry["hash"]
