"""Limit how many connections a server has, and choose the one to close if there are too many."""

import resource
from collections import Counter
from contextlib import suppress
from typing import Protocol, final, runtime_checkable

SPARE = 256  # files beside the connections: the store's, libraries', and what the kernel has accepted and nobody seen
BACKLOG = 100  # connections that the kernel accepts for us, and that one turn of the event loop takes from it


@runtime_checkable
class Connection(Protocol):
    """Describe a connection: the address at its other end, whether no request of it is under way, and how to end it."""

    @property
    def address(self) -> str: ...

    @property
    def waits(self) -> bool: ...

    def end(self) -> None: ...


@final
class Connections:
    """Hold the connections of one server. When there are too many, one without a request is closed to make room.

    It is the one that has waited longest, of the address that has most of them: so a client that opens very many keeps
    no other client out, and behind a proxy, where all have one address, those that are in use stay.
    """

    def __init__(self, most: int, seconds: float):
        self.most, self.seconds = most, seconds
        self.open: dict[Connection, None] = {}  # in the order in which they began to wait or were opened

    def enter(self, one: Connection) -> bool:
        """Return whether there is room for one more connection, after another was closed if need be."""
        if len(self.open) >= self.most:
            waiting = [other for other in self.open if other.waits]
            if not waiting:
                return False
            by_address = Counter(other.address for other in waiting)
            gone = max(waiting, key=lambda other: by_address[other.address])  # the first of those in order
            gone.end()
            self.leave(gone)
        self.open[one] = None
        return True

    def leave(self, one: Connection) -> None:
        self.open.pop(one, None)

    def waited(self, one: Connection) -> None:
        """Put a connection behind those that have waited for longer."""
        if one in self.open:
            del self.open[one]
            self.open[one] = None


def room_for(connections: int) -> int:
    """Return the number of connections that the process has files for, at most `connections`; its limit is raised if
    allowed.

    Without files left over the store could not be read, and every new connection would be cut off.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    wanted = connections + SPARE
    if soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            if raised > soft:
                resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
                soft = raised
    return max(1, min(connections, soft - SPARE if soft > 2 * SPARE else soft // 2))
