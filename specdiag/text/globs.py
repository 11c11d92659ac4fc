"""Selection of tensors by globs on their names, the same in every command and function.

`*` stands for any characters, dots too. A name always fits itself, though `c_attn.weight[q]` reads as a glob.

>>> fits(["h.0.attn.c_attn.weight[q]", "h.0.attn.c_attn.weight"], ["*.c_attn.weight"])
True
>>> chosen(["lm_head.weight"], include=(), exclude=["lm_head*"])
False
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from specdiag.errors import UsageError
from specdiag.text.checks import shown
from specdiag.text.printable import printable


def fits(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Tell whether globs fit one tensor.

    Args:
        names: all names of the tensor, such as its key and the name of its Parameter.
        patterns: globs.

    Returns:
        True where at least one name fits at least one pattern.
    """
    patterns = tuple(patterns)
    return any(name == pattern or fnmatchcase(name, pattern) for name in names for pattern in patterns)


def chosen(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Tell whether one tensor is selected.

    Args:
        names: all names of the tensor.
        include: globs, of which one must fit; empty for every tensor.
        exclude: globs, of which none may fit.
    """
    names = tuple(names)
    return (not include or fits(names, include)) and not fits(names, exclude)


def check_globs(argument: str, patterns: Iterable[str], tensors: Sequence[Sequence[str]], what: str) -> None:
    """Refuse a pattern that selects nothing, which is most often a typing error.

    Args:
        argument: the name of the argument that held the patterns.
        patterns: globs.
        tensors: all names of each tensor; the first one is shown as an example.
        what: the kind of thing that has these names, in the plural, such as `matrices`.

    Raises:
        UsageError: a pattern fits no name; the message says which, and shows a name.
    """
    for pattern in patterns:
        if not any(fits(names, (pattern,)) for names in tensors):
            example = f"; their names look like '{printable(tensors[0][0])}'" if tensors else ""
            raise UsageError(f"{argument}={printable(shown(pattern))} matches none of {len(tensors)} {what}{example}")
