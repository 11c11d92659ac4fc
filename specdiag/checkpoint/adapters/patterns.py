"""Regular expressions of an adapter's configuration, matched in all ways at once.

Python's own engine tries one way after the other, which takes exponential time for some patterns. Here a pattern maps
the places where it may begin to those where it may end, so that each way is followed once. Steps are counted, and a
pattern that takes too many is refused. It may contain what names of modules are written with: letters, `.`, `\\d`,
`\\w`, classes, groups, `|`, `* + ? {m,n}`, `^` and `$`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter

from specdiag.checkpoint.long_names import brief
from specdiag.errors import SourceError

_MOST_STEPS = 4_000_000
_MOST_DEPTH, _MOST_REPEATS = 20, 64
_MOST_PATTERNS = 100_000
LONGEST = 16_384
"""Characters of the longest pattern that is read."""
_PLAIN = re.compile(r"\^?(?:[A-Za-z0-9_.-]|\\[.-])*\$?")
_DOT = re.compile(r"\\(.)|\.")
_REPEAT = re.compile(r"\{(?=[\d,])(\d*)(,?)(\d*)\}", re.ASCII)
_CLASS = re.compile(r"\[\^?(?:\\[\w.\-\[\]^]|[^\\\]])+\]")
_ESCAPE = re.compile(r"\\(?:[dwDWsS]|[^\w\s])", re.ASCII)

Places = frozenset[int]


class _NotUnderstood(Exception):
    """The text is no pattern, or one of a kind that is not followed; the message says which."""


@dataclass(slots=True)
class _Text:
    """The text that is matched, and the number of steps that are left."""

    text: str
    left: int

    def spend(self, n: int) -> None:
        """Count places that were looked at."""
        self.left -= n
        if self.left < 0:
            raise SourceError(
                "the patterns of adapter_config.json have too many ways to fit the modules: merge the adapter into its "
                "model (PEFT: merge_and_unload), or write the names of the modules instead"
            )


_Step = Callable[[_Text, Places], Places]


class _Names:
    """Patterns that are names, in which a dot stands for any letter, indexed by length and the places of dots."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[tuple[int, ...], dict[tuple[str, bool], tuple[int, object]]]] = {}

    def add(self, key: str, place: int, value: object) -> None:
        """Take a pattern, its place among all, and its value."""
        letters = _DOT.sub(lambda match: match[1] or "\0", key.removeprefix("^").removesuffix("$"))
        dots = tuple(i for i, letter in enumerate(letters) if letter == "\0")
        entries = self._by_length.setdefault(len(letters), {}).setdefault(dots, {})
        entries.setdefault((letters, key.startswith("^")), (place, value))

    def fitting(self, text: _Text, starts: Places) -> Iterator[tuple[int, object]]:
        """Yield places and values of the patterns that are the end of the text, from one of the starts on."""
        for start in starts:
            tail = text.text[start:]
            for dots, entries in self._by_length.get(len(tail), {}).items():
                text.spend(1 + len(dots))
                letters = list(tail)
                for i in dots:
                    letters[i] = "\0"
                is_line = all(tail[i] != "\n" for i in dots)
                for whole in (False, True) if start == 0 else (False,):
                    entry = entries.get(("".join(letters), whole))
                    if entry is not None and is_line:
                        yield entry


class Patterns:
    """A `rank_pattern` or `alpha_pattern`: values by patterns on the end of a module's path."""

    def __init__(self, values: Mapping[str, object]) -> None:
        """Take the pairs of the configuration; a pattern is read when a module is looked for.

        Args:
            values: by pattern, in the order of the configuration.
        """
        self._values, self._left = values, _MOST_STEPS

    def first(self, module: str, default: object) -> object:
        """Find the first pattern that fits, as PEFT's `get_pattern_key` does: `(.*\\.)?(PATTERN)$`.

        Args:
            module: its path.
            default: the value where no pattern fits.

        Returns:
            The value of the pattern.

        Raises:
            SourceError: a pattern is no regular expression, or none that can be followed.
        """
        text = _Text(module, self._left)
        starts = frozenset({0, *(i + 1 for i, letter in enumerate(module) if letter == ".")})
        names, others = self._compiled
        last, value = min(names.fitting(text, starts), key=itemgetter(0), default=(len(self._values), default))
        steps = ((own_value, step) for place, own_value, step in others if place < last)
        value = next((own_value for own_value, step in steps if len(module) in step(text, starts)), value)
        self._left = text.left
        return value

    @cached_property
    def _compiled(self) -> tuple[_Names, list[tuple[int, object, _Step]]]:
        """Patterns that are names; of the others the place, the value and the compiled step."""
        if len(self._values) > _MOST_PATTERNS:
            raise SourceError(f"adapter_config.json has {len(self._values)} patterns, and {_MOST_PATTERNS} are read")
        names = _Names()
        others: list[tuple[int, object, _Step]] = []
        for place, (key, value) in enumerate(self._values.items()):
            if len(key) > LONGEST:
                raise _refused(key, f"it has {len(key)} characters")
            if _PLAIN.fullmatch(key):
                names.add(key, place, value)
            else:
                others.append((place, value, _compile(key)))
        return names, others


def _compile(key: str) -> _Step:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of syntax whose meaning may change
            re.compile(key)
            return _Parser(key).whole()
    except re.error as error:
        raise _refused(key, f"no regular expression: {error}") from error
    except (_NotUnderstood, RecursionError, OverflowError) as error:
        raise _refused(key, str(error) or "nested too deep") from error


def _refused(key: str, why: str) -> SourceError:
    return SourceError(
        f"adapter_config.json has the pattern '{brief(key)}', which cannot be followed ({why}): write the names of the "
        "modules instead"
    )


class _Parser:
    """Parser of a pattern, by descent."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at, self._depth = pattern, 0, 0

    def whole(self) -> _Step:
        step = self._either()
        if self._at < len(self._pattern):
            raise _NotUnderstood(f"'{self._pattern[self._at]}' at {self._at}")
        return step

    def _either(self) -> _Step:
        branches = [self._row()]
        while self._takes("|"):
            branches.append(self._row())
        return branches[0] if len(branches) == 1 else partial(_any_of, branches)

    def _row(self) -> _Step:
        steps: list[_Step] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            steps.append(self._repeated(self._one()))
        return partial(_in_turn, steps)

    def _one(self) -> _Step:
        letter = self._pattern[self._at]
        if letter == "(":
            return self._group()
        if letter == "[":
            return self._set(_CLASS)
        if letter == "\\":
            return self._set(_ESCAPE)
        self._at += 1
        if letter in "^$":
            return _at_begin if letter == "^" else _at_end
        return partial(_one_of, re.compile(letter if letter == "." else re.escape(letter)))

    def _group(self) -> _Step:
        self._at += 1
        if self._takes("?") and not self._takes(":"):
            raise _NotUnderstood(f"'(?' at {self._at - 2}")
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise _NotUnderstood("nested too deep")
        step = self._either()
        self._depth -= 1
        self._takes(")")  # always there: Python's parser has accepted the pattern
        return step

    def _set(self, kind: re.Pattern[str]) -> _Step:
        """Parse a character of a kind that Python's engine matches in a single step."""
        match = kind.match(self._pattern, self._at)
        if match is None:
            raise _NotUnderstood(f"'{self._pattern[self._at : self._at + 2]}' at {self._at}")
        self._at = match.end()
        return partial(_one_of, re.compile(match[0]))

    def _repeated(self, step: _Step) -> _Step:
        bounds = self._bounds()
        if bounds is None:
            return step
        self._takes("?")  # shortest match or longest: both exist, or neither
        if self._pattern[self._at : self._at + 1] in ("*", "+"):
            raise _NotUnderstood(f"'{self._pattern[self._at]}' at {self._at}")
        return partial(_repeat, step, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        for letter, least, most in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self._takes(letter):
                return least, most
        match = _REPEAT.match(self._pattern, self._at)
        if match is None:
            return None
        self._at = match.end()
        least = int(match[1] or 0)
        most = int(match[3]) if match[3] else None if match[2] else least
        if max(least, most or 0) > _MOST_REPEATS:
            raise _NotUnderstood(f"'{match[0]}'")
        return least, most

    def _takes(self, letter: str) -> bool:
        is_next = self._pattern.startswith(letter, self._at)
        self._at += is_next
        return is_next


def _one_of(kind: re.Pattern[str], text: _Text, places: Places) -> Places:
    text.spend(1 + len(places))
    return frozenset(i + 1 for i in places if kind.match(text.text, i, i + 1))


def _at_begin(text: _Text, places: Places) -> Places:
    return places & {0}


def _at_end(text: _Text, places: Places) -> Places:
    return places & {len(text.text)}


def _in_turn(steps: Sequence[_Step], text: _Text, places: Places) -> Places:
    for step in steps:
        if not places:
            break
        places = step(text, places)
    return places


def _any_of(steps: Sequence[_Step], text: _Text, places: Places) -> Places:
    text.spend(len(steps))
    return frozenset[int]().union(*(step(text, places) for step in steps))


def _repeat(step: _Step, least: int, most: int | None, text: _Text, places: Places) -> Places:
    for _ in range(least):
        text.spend(1)
        places = step(text, places)
    reached = new = places
    times = least
    while new and (most is None or times < most):
        text.spend(1)
        new = step(text, new) - reached
        reached |= new
        times += 1
    return reached
