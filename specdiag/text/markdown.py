r"""Markdown that shows text as it is. Names come from untrusted files: nothing in them is read as markup.

>>> code("model.norm.weight"), code("<b>|x")
('`model.norm.weight`', '&lt;b&gt;\\|x')
"""

from __future__ import annotations

import re

from specdiag.text.printable import printable

_MARKS = re.compile(r"[\\`*_{}\[\]#|~!@$]|:(?=//)|(?<=\bwww)\.")
_UNSAFE_IN_CODE = re.compile(r"[|`<>&]|##\[|^\s|\s$|^$")


def text(content: str) -> str:
    r"""Write one line with `\` before every mark that markdown knows, and HTML as entities."""
    content = printable(content).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\g<0>", content)


def code(content: str) -> str:
    """Write a code span for a cell of a table, or escaped text where the content has pipes, backticks or tags.

    Args:
        content: an untrusted name.
    """
    content = printable(content)
    return text(content) if _UNSAFE_IN_CODE.search(content) else f"`{content}`"
