"""Seeded mutations of good input, for tests that a reader ends every input with its own kind of error."""

import copy
import json
import os
import random
import resource
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SpecdiagError

LIMIT = 60.0
"""Seconds that one input may take, on a machine with other work."""
MEMORY = 700 << 20
"""Bytes that the peak of the process may grow by while a target is fuzzed."""
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, -0.0, 1e300, 1e308, float("nan"), float("inf"), 2**31, 2**40, 2**63, 2**64, 10**400,
    "", "x", "1", "\0", "\ud800", "²³", "‮", "\x1b[31m", "../../x", "/etc/passwd", "a" * 5000, "9" * 5000, "(a+)+$",
    [], {}, [None], [[]], {"": None}, [1, "x", None], {"x": {"x": {"x": []}}}, [0] * 1000,
)  # fmt: skip
_ODD_BYTES = (b"\0", b"\xff", b"\x80", b"{", b"}", b"[", b'"', b"\n", b"9" * 50, b"\xff" * 8, b"\0" * 8, b"\xc3\x28")


def seconds(default: float = 2.0) -> float:
    """Seconds for one target: SPECDIAG_FUZZ_SECONDS where it is set, a few by default."""
    return float(os.environ.get("SPECDIAG_FUZZ_SECONDS") or default)


def mutations(data: bytes, seed: int) -> Iterator[bytes]:
    """Endless variants of `data`: bits flipped, parts cut, doubled, replaced, and every prefix now and then."""
    rng = random.Random(seed)
    while True:
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            _mutate(out, rng)
        yield bytes(out)


def json_mutations(value: Any, seed: int) -> Iterator[Any]:
    """Endless variants of a value made of dicts, lists and scalars; one to three places hold something odd."""
    rng = random.Random(seed)
    while True:
        out = json.loads(json.dumps(value))
        for _ in range(rng.choice((1, 1, 2, 3))):
            out = _mutate_value(out, rng)
        yield out


def opens_or_says_why(content: bytes, suffix: str, memory: int) -> None:
    """Opening and reading a file gives a checkpoint or a SpecdiagError of one line, within so many bytes of memory."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        tracemalloc.start()
        try:
            message = _read_all(Path(file.name))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert "\n" not in message
    assert peak < memory


def _read_all(path: Path) -> str:
    try:
        for matrix in open_checkpoint(path).matrices:
            matrix.tensor.read(None)
            matrix.tensor.read(0)
    except SpecdiagError as error:
        return str(error)
    return ""


def fuzz(read: Callable[[Any], object], inputs: Iterator[Any], budget: float | None = None) -> int:
    """How many inputs were read within the budget; an error that is no SpecdiagError, or a slow input, fails.

    The first inputs are the same ones at every run; a slower machine reads fewer of them.
    """
    until = time.monotonic() + (seconds() if budget is None else budget)
    peak, count = _peak(), 0
    while count < 20 or time.monotonic() < until:
        value, begin = next(inputs), time.monotonic()
        problem = _problem(read, value)
        assert problem is None, f"input {count}: {problem} for {value!r:.2000}"
        took = time.monotonic() - begin
        assert took < LIMIT, f"input {count} took {took:.0f} s: {value!r:.2000}"
        count += 1
    assert _peak() - peak < MEMORY, f"the peak of the memory grew by {(_peak() - peak) >> 20} MiB"
    return count


def _problem(read: Callable[[Any], object], value: Any) -> str | None:
    """The fault in how `read` ends."""
    try:
        read(value)
    except SpecdiagError as error:
        text = str(error)
        bad = not text.strip() or len(text) > 4000
        return f"no good sentence: {text:.300}" if bad else None
    except Exception as error:  # noqa: BLE001
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error!s:.300} ({where.filename}:{where.lineno})"
    return None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mutate(out: bytearray, rng: random.Random) -> None:
    """Change `out` in one place."""
    at = rng.randrange(len(out) + 1)
    end = min(len(out), at + rng.choice((1, 2, 4, 8, 64, len(out) or 1)))
    how = rng.randrange(6)
    if how == 0 and at < len(out):
        out[at] ^= 1 << rng.randrange(8)
    elif how == 1:
        out[at:end] = b""
    elif how == 2:
        out[at:at] = out[at:end]
    elif how == 3:
        out[at:end] = rng.randbytes(end - at)
    elif how == 4:
        odd = rng.choice(_ODD_BYTES)
        out[at : at + rng.choice((0, len(odd)))] = odd
    elif rng.random() < 0.3:
        del out[at:]


def _mutate_value(value: Any, rng: random.Random) -> Any:
    """`value` with one place changed, chosen evenly over all of them."""
    places = list(_places(value))
    if not places:
        return copy.deepcopy(rng.choice(ODD_VALUES))
    holder, key = rng.choice(places)
    how = rng.randrange(8)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[str(rng.choice(ODD_VALUES))] = holder.pop(key)
    elif how == 2:
        other, other_key = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[other_key], default=str))
    elif how == 3:
        for _ in range(rng.choice((1, 50))):
            holder[key] = [holder[key]] if rng.random() < 0.5 else {str(key): holder[key]}
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))  # the next mutation may change it
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within `value` with every key of it."""
    stack = [value]
    while stack:
        held = stack.pop()
        keys: list[Any] = (
            list(held) if isinstance(held, dict) else list(range(len(held))) if isinstance(held, list) else []
        )
        for key in keys:
            yield held, key
            stack.append(held[key])
