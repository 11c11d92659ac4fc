"""Names in a sentence.

>>> listed(["wq", "wk", "wv", "wo"], most=2)
'wq, wk and 2 more'
"""

from __future__ import annotations

from collections.abc import Iterable

from specdiag.text.printable import printable


def listed(names: Iterable[object], most: int = 5) -> str:
    """List names for a sentence, safe to print.

    Args:
        names: names, or anything whose text is one.
        most: how many are shown; the rest are counted.

    Returns:
        `"a, b"`, or `"a, b and 3 more"`; empty where there are no names.
    """
    shown = [printable(str(name)) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
