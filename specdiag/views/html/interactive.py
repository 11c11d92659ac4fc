"""plotly for the page, from its own package: compressed, and unpacked by the page when a spectrum is first opened.

Its script is 4.8 MB; packed it takes 2, and a page that nobody touches does not run it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from specdiag.views.html.spectrum import Spectrum


class Plotly(NamedTuple):
    """The script, as the page carries it."""

    packed: str
    """Base64 of its gzip."""
    digest: str
    """Hash by which the page's security policy admits it."""


def plotly() -> Plotly | None:
    """Read plotly's script; None where the package is not installed."""
    package = find_spec("plotly")
    if package is None or not package.submodule_search_locations:
        return None
    script = Path(package.submodule_search_locations[0], "package_data", "plotly.min.js")
    if not script.is_file():
        return None
    content = script.read_bytes()
    return Plotly(base64.b64encode(gzip.compress(content, mtime=0)).decode(), digest(content))


def digest(script: bytes) -> str:
    """Hash a script as a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}"


def curves(drawn: Spectrum) -> dict[str, object]:
    """Prepare a spectrum for the page's script.

    Args:
        drawn: the numbers to draw.

    Returns:
        The span and the densities of its bins, and the fit and nulls where there are some.
    """
    return {
        "span": (drawn.low, drawn.high),
        "density": drawn.density,
        "fit": drawn.fit,
        "bulk": drawn.bulk,
        "permuted": drawn.permuted,
        "randomized": drawn.randomized,
    }
