"""Decoders exist before threads do: the first typed decode of a process, made by several threads at once, crashes."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from command import execute, start, words
from helpers import lcg
from models import queries, write_checkpoint

import cli
import specdiag

ROOTS = tuple(Path(package.__file__).parent for package in (specdiag, cli))
HELPERS = {"json_decoder", "msgpack_decoder", "toml_decoder", "converter"}
MODULES = [path for root in ROOTS for path in sorted(root.rglob("*.py"))]
assert len(MODULES) > 200


def dotted(node):
    """`a.b.c` of an expression, the end of it where it begins with a call."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def names_of_msgspec(tree):
    """The names that a module has of msgspec's functions that take a type, however it imported them."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "msgspec":
                    found[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else "msgspec"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "msgspec":
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def cold(tree):
    """Lines that may be the first to decode to a type, and run when they are called rather than at import."""
    known = names_of_msgspec(tree)

    def visit(node, inside):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            first, _, rest = name.partition(".")
            full = f"{known.get(first, first)}{'.' + rest if rest else ''}"
            of_msgspec = first in known
            takes_a_type = any(keyword.arg == "type" for keyword in node.keywords) or len(node.args) > 1
            if of_msgspec and full.endswith((".decode", ".convert")) and takes_a_type:
                yield node.lineno
            if of_msgspec and full.endswith(".convert"):
                yield node.lineno
            if inside and ((of_msgspec and full.endswith("Decoder")) or first in HELPERS):
                yield node.lineno
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return sorted(set(visit(tree, False)))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: "/".join(p.parts[-3:]))
def test_every_decoder_is_made_at_import(path):
    if path.name == "files.py" and path.parent == ROOTS[0]:
        return  # the helpers themselves
    lines = cold(ast.parse(path.read_text()))
    allowed = {"rules.py": 1} if path.parent.name == "architecture" else {}  # its loader is called at import
    assert len(lines) <= allowed.get(path.name, 0), f"{path}: a type may be decoded cold in lines {lines}"


@pytest.mark.parametrize(
    "code",
    [
        "import msgspec\ndef f(): return msgspec.json.decode(b'', type=int)",
        "import msgspec\ndef f(): return msgspec.convert(1, int)",
        "import msgspec.json as j\ndef f(): return j.decode(b'', type=int)",
        "from msgspec.msgpack import decode\ndef f(): return decode(b'', type=int)",
        "from msgspec import convert as c\nf = lambda x: c(x, int)",
        "import msgspec\nclass A:\n    def f(self): return msgspec.json.Decoder(int)",
        "from specdiag.files import json_decoder\ndef f(): return json_decoder(int)(b'')",
    ],
)
def test_what_the_test_sees(code):
    assert cold(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "import msgspec\nD = msgspec.json.Decoder(int)\ndef f(): return D.decode(b'1')",
        "import msgspec\ndef f(): return msgspec.json.decode(b'1')",
        "from specdiag.files import json_decoder\n_decode = json_decoder(int)\ndef f(): return _decode(b'')",
        "def f(data): return data.decode(type=1)",
    ],
)
def test_what_the_test_lets_pass(code):
    assert not cold(ast.parse(code))


# Processes: what crashed 7 of 40 times, and 15 of 20

THREADS = """
import sys, threading
sys.setswitchinterval(1e-5)
import specdiag
barrier = threading.Barrier(4)
errors = []
def call():
    barrier.wait()
    try:
        {call}
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=call) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
assert not errors, errors
"""


def ends(codes):
    """Exit codes of processes that run at once, two at a time."""
    found = []
    for i in range(0, len(codes), 2):
        running = [start([sys.executable, "-c", code], env={"OMP_NUM_THREADS": "1"}) for code in codes[i : i + 2]]
        found += [(process.communicate(timeout=300)[1][-500:], process.returncode) for process in running]
    return [problem for problem in found if problem[1]]


def test_the_first_report_is_loaded_in_threads(tmp_path):
    state = {"layers.0.attn.q_proj.weight": torch.from_numpy(lcg(64, 64, 1))}
    path = str(specdiag.analyze(state, device="cpu").save(tmp_path / "a.json"))
    code = THREADS.format(call=f"report = specdiag.load_report({path!r}); report.eigenvalues(report.records[0].key)")
    assert ends([code] * 6) == []


def test_the_first_kept_result_is_found_in_threads(tmp_path):
    folder, cache = write_checkpoint(tmp_path / "ckpt", queries(8)), tmp_path / "cache"
    specdiag.analyze(folder, cache=cache, device="cpu")
    code = (
        "import sys, specdiag; sys.setswitchinterval(1e-5)\n"
        f"report = specdiag.analyze({str(folder)!r}, jobs=4, cache={str(cache)!r}, device='cpu')\n"
        "assert report.provenance.n_cached == 8, report.provenance"
    )
    assert ends([code] * 6) == []


def test_commands_share_a_warm_cache(tmp_path):
    folder, cache = write_checkpoint(tmp_path / "ckpt", queries(8)), tmp_path / "cache"
    environment = {"SPECDIAG_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = ("-q", "analyze", folder, "--jobs", "4", "-o")
    assert execute(*command, tmp_path / "first.json", env=environment).returncode == 0
    running = [start(words(*command, tmp_path / f"{i}.json"), env=environment) for i in range(6)]
    assert [(process.communicate(timeout=300)[1], process.returncode) for process in running] == [("", 0)] * 6
    assert all(specdiag.load_report(tmp_path / f"{i}.json").provenance.n_cached == 8 for i in range(6))
