"""Run the notebooks and store their outputs in them, with the version of the results that they show.

python notebooks/execute.py           # or make notebooks; ten minutes
python notebooks/execute.py 01 02     # some of them
"""

from __future__ import annotations

import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from specdiag.analysis.cache import RESULTS_VERSION

HERE = Path(__file__).parent


def main() -> None:
    """Execute each notebook whose name begins like an argument, all without one."""
    for path in sorted(HERE.glob("*.ipynb")):
        if path.name.startswith(tuple(sys.argv[1:] or [""])):
            print(path.name)
            execute(path)


def execute(path: Path) -> None:
    """Run a notebook from top to bottom and write it with its outputs, as small and as repeatable as they can be."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, kernel_name="python3", record_timing=False).execute(cwd=HERE)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            shown.pop("text/html", None)  # its text says the same
            if "image/png" in shown:
                shown["image/png"] = small(shown["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "specdiag": {"results_version": RESULTS_VERSION},
    }
    nbformat.write(notebook, path)


def small(png: str) -> str:
    """A picture of at most 1000 points and 64 colours, on white."""
    picture = Image.open(BytesIO(b64decode(png))).convert("RGBA")
    picture.thumbnail((1000, 1000))
    white = Image.new("RGBA", picture.size, "white")
    out = BytesIO()
    Image.alpha_composite(white, picture).convert("RGB").quantize(64).save(out, "PNG", optimize=True)
    return b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    main()
