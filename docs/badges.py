"""Badges of the README, drawn from pyproject.toml: no service is asked when somebody reads the page.

python docs/badges.py
"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "figures" / "badges"
_LETTER, _MARGIN = 6.4, 8
"""Mean width of a letter and the space beside a text, in pixels at a size of 11."""
_BADGE = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{name}: {value}">
  <title>{name}: {value}</title>
  <rect width="{width}" height="20" rx="3" fill="#4a3a78"/>
  <path d="M3 0h{cut}v20H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z" fill="#444"/>
  <g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">
    <text x="{left}" y="14">{name}</text>
    <text x="{right}" y="14">{value}</text>
  </g>
</svg>
"""


def badges() -> dict[str, str]:
    """Draw a badge for each fact: the pictures by their names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    systems = [line.rpartition(" :: ")[2] for line in project["classifiers"] if line.startswith("Operating System")]
    systems = [name.replace("MacOS", "macOS") for name in systems]
    facts = {
        "python": project["requires-python"].removeprefix(">=") + "+",
        "systems": ", ".join(sorted(systems, key=str.lower)),
        "types": "checked" if "Typing :: Typed" in project["classifiers"] else "unchecked",
        "license": project["license"],
    }
    return {name: _badge(name, value) for name, value in facts.items()}


def _badge(name: str, value: str) -> str:
    first, second = (round(_LETTER * len(text)) + 2 * _MARGIN for text in (name, value))
    width, cut = first + second, first - 3
    return _BADGE.format(name=name, value=value, width=width, cut=cut, left=first / 2, right=first + second / 2)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, drawn in badges().items():
        (FOLDER / f"{name}.svg").write_text(drawn)
