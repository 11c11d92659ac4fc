"""The process, started by the path of this file: a request on stdin, its answers on stdout, one a line."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path


def _main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    request = json.load(sys.stdin)
    root = str(Path(__file__).parents[3])
    sys.path.insert(0, root)  # the code of the process that asks, wherever that found it
    process = import_module("specdiag.auditing.reference_process.answering")
    sys.path.remove(root)
    process.confine(request["memory"], request["seconds"])
    for part in process.answers(request):  # the first one counts even where time or memory end before the second
        out.write(json.dumps(part) + "\n")
        out.flush()
    os._exit(0)


if __name__ == "__main__":
    _main()
