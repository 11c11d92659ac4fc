"""Build the site of docs/ with the command line, the docstrings and the notebooks, and check every link in it.

python docs/build.py    # or make docs: build/docs/site/index.html
"""

from __future__ import annotations

import base64
import inspect
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import specdiag

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "build" / "docs"
PAGES = STAGE / "pages"
SITE = STAGE / "site"
NAMES = {f"{name}.md": f"{name.lower()}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")}
"""Files of the root that are pages too."""


def main() -> None:
    """Stage the pages, build, check."""
    shutil.rmtree(STAGE, ignore_errors=True)
    PAGES.mkdir(parents=True)
    shutil.copytree(ROOT / "docs" / "figures", PAGES / "figures")
    shutil.copy(ROOT / "docs" / "site.css", PAGES)
    shutil.copy(ROOT / "docs" / "zensical.toml", STAGE)
    for page in [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in NAMES)]:
        (PAGES / NAMES.get(page.name, page.name)).write_text(relinked(page.read_text(), page.parent))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = as_markdown(json.loads(notebook.read_text()), notebook.stem)
        (PAGES / f"{notebook.stem}.md").write_text(relinked(text, notebook.parent))
    stage_docstrings()
    (PAGES / "api.md").write_text(api())
    program = [sys.executable, "-m", "typer", "specdiag_cli.main", "utils", "docs", "--name", "specdiag"]
    subprocess.run([*program, "--title", "Command line", "--output", PAGES / "cli.md"], check=True, capture_output=True)
    zensical = [sys.executable, "-m", "zensical", "build", "--strict", "-f", STAGE / "zensical.toml"]
    if subprocess.run(zensical, cwd=STAGE).returncode:
        sys.exit("the site was not built")
    if broken := broken_links(SITE):
        sys.exit("\n".join(["links that lead nowhere:", *broken]))
    print(f"built: {SITE / 'index.html'}")


def relinked(text: str, folder: Path) -> str:
    """A page with its links as they are on the site: pages lie side by side, other files are copied there."""

    def moved(link: re.Match[str]) -> str:
        target, anchor = (folder / link[1]).resolve(), link[2] or ""
        if not target.is_relative_to(ROOT) or not target.is_file() or target.is_relative_to(ROOT / "docs" / "figures"):
            return link[0]
        if target.suffix in (".md", ".ipynb"):
            return f"]({NAMES.get(target.name, target.with_suffix('.md').name)}{anchor})"
        copy = Path("source") / target.relative_to(ROOT)
        (PAGES / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(target, PAGES / copy)
        return f"]({copy})"

    return re.sub(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)", moved, text)


def as_markdown(notebook: dict[str, Any], name: str) -> str:
    """A notebook with its outputs as a page; pictures are files beside it."""
    parts: list[str] = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for place, output in enumerate(cell.get("outputs", [])):
            shown = output.get("data", {})
            if picture := shown.get("image/png"):
                file = f"figures/{name}_{number}_{place}.png"
                (PAGES / file).write_bytes(base64.b64decode(picture))
                parts.append(f"![output]({file})")
            elif text := "".join(output.get("text") or shown.get("text/plain", "")):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def stage_docstrings() -> None:
    """Copy the package with its doctests where mkdocstrings looks for them: under `Examples`."""
    for path in (ROOT / "specdiag").rglob("*.py"):
        copy = STAGE / "package" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(re.sub(r"^( *)Example:$", r"\1Examples:", path.read_text(), flags=re.MULTILINE))


def api() -> str:
    """The page of the public names."""
    found = {name: getattr(specdiag, name) for name in specdiag.__all__}
    kinds = {name: _kind(value) for name, value in found.items()}
    lines = ["# Python API", "Which function does what, with which arguments?", "```python\nimport specdiag\n```"]
    for kind in ("Functions", "Results", "Errors"):
        lines += [f"## {kind}", *(f"::: specdiag.{name}" for name in found if kinds[name] == kind)]
    for module in ("plot", "optim", "train"):
        names = getattr(specdiag, module).__all__
        lines += [f"## specdiag.{module}", *(f"::: specdiag.{module}.{name}" for name in names)]
    return "\n\n".join(lines) + "\n"


def _kind(value: object) -> str:
    if inspect.isclass(value):
        return "Errors" if issubclass(value, BaseException) else "Results"
    return "Functions" if callable(value) else "Modules"


class _Links(HTMLParser):
    """Collect the targets of a page's links, and the anchors that links to it can name."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of links, pictures and ids."""
        given = {name: value for name, value in attrs if value}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given]


def broken_links(site: Path) -> list[str]:
    """Links within the site that lead to no file, or to no place in it, with their page."""
    pages = {page: _Links(page) for page in sorted(site.rglob("*.html"))}
    broken: list[str] = []
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            folder = site if parts.path.startswith("/") else page.parent
            target = (folder / unquote(parts.path).lstrip("/")).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].places if target in pages else set()
            if not target.is_file() or (parts.fragment and target in pages and unquote(parts.fragment) not in known):
                broken.append(f"{page.name}: {link}")
    return broken


if __name__ == "__main__":
    main()
