"""Limits of the process: memory, time, files, connections and further processes."""

from __future__ import annotations

import re
import resource
import sys

from specdiag.auditing.reference_process.failures import NoModelError

_FORBIDDEN = re.compile(r"socket\.(connect|getaddrinfo|bind|sendto)|subprocess\..*|os\.(exec|fork|posix_spawn|system)")
_SMALL_FILE = 1 << 16
"""Libraries try whether a folder for temporary files can be written."""
attempts: list[str] = []
"""Events that were refused since the process was locked: a failure after one may come from it."""


def confine(memory: int, seconds: int) -> None:
    """Limit the memory and the time of this process, and keep it from writing large files.

    Args:
        memory: bytes that it may hold.
        seconds: processor time.
    """
    for kind, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, _SMALL_FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def lock() -> None:
    """Refuse connections and further processes from here on."""

    def refuse(event: str, _: object) -> None:
        if _FORBIDDEN.fullmatch(event):
            attempts.append(event)
            raise NoModelError(f"building it would need {event}")

    sys.addaudithook(refuse)
