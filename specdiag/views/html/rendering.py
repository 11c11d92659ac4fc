"""The environment of the pages: what is put into a template is escaped, and shows."""

from __future__ import annotations

import re
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from specdiag.text.printable import printable
from specdiag.views.html import interactive

_PARTS = "parts.html.j2"
_PERCENT = re.compile(r"(\d) %")
"""A number whose sign must not begin the next line."""


def render(template: str, digests: tuple[str, ...] = (), **content: object) -> str:
    """Fill a template.

    Args:
        template: its file.
        digests: of further scripts that the page carries, beside its own.
        content: names of the template, with their values.

    Returns:
        The page.
    """
    environment = Environment(
        loader=DictLoader({name: _data(name) for name in (_PARTS, template)}),
        autoescape=True,
        finalize=_plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["foldable"] = _foldable
    script = _data("report.js")
    return environment.get_template(template).render(
        content,
        style=Markup(_data("style.css")),
        script=Markup(script),
        digests=[interactive.digest(script.encode()), *digests],
    )


def as_text(text: str) -> Markup:
    """Escape a text of several lines, with every character in it that does not show."""
    return Markup("\n").join(escape(printable(line)) for line in text.splitlines())


def _data(name: str) -> str:
    return files("specdiag.views.html").joinpath(name).read_text(encoding="utf-8")


def _plain(value: object) -> str:
    """Write out the characters of a value that do not show, or that turn the text around."""
    return value if isinstance(value, Markup) else _PERCENT.sub("\\1\N{NO-BREAK SPACE}%", printable(str(value)))


def _foldable(name: str) -> Markup:
    """Let a narrow column break a name after its dots and slashes."""
    return Markup(str(escape(_plain(name))).replace(".", ".<wbr>").replace("/", "/<wbr>"))
