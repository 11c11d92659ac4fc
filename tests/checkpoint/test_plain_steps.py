"""The loop over plain steps of a pickle does what one step after another does, on whole and damaged pickles."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections import OrderedDict

import pytest
import torch

from specdiag.checkpoint import inert_unpickler
from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.inert_unpickler import InertUnpickler
from specdiag.checkpoint.pickle_window import Window
from specdiag.checkpoint.torch_rebuild import known_names, makers

STEPS = b"hjqrKMJX(t\x85\x86\x87RQ)\x89\x88N.}]usae0210\x00\x01\x02"


def answer(data: bytes) -> object:
    """Describe the content of a pickle, or its failure."""
    unpickler = InertUnpickler(io.BytesIO(data), known_names(), makers(), lambda storage: ("outside", storage), 5000)
    try:
        content = unpickler.load()
    except IndexError as error:
        return type(error)
    except Exception as error:  # noqa: BLE001 - any damage has to end in the same way
        return type(error), str(error)
    return shown(content), list(unpickler.foreign)


def shown(value: object, depth: int = 0) -> object:
    if depth > 20 or not isinstance(value, (Inert, dict, list, tuple)):
        return repr(value)[:200] if depth <= 20 else "deep"
    if isinstance(value, Inert):
        return [value.made_by.name] + [shown(held, depth + 1) for held in (value.args, value.state, value.items)]
    held = list(value.items()) if isinstance(value, dict) else list(value)
    return type(value).__name__, [shown(inner, depth + 1) for inner in held[:200]]


def seeds() -> list[bytes]:
    file = io.BytesIO()
    content = {
        "a": torch.zeros(3, 4),
        "b": {1: [2.5, None, "x" * 70_000, 2**40, True]},
        "o": OrderedDict(x=torch.zeros(2, 2)),
    }
    torch.save(content, file)
    plain = {"a": (1, 2, 3), "b": [(), (1,), {"c": 70_000}]}
    return [zipfile.ZipFile(file).read("archive/data.pkl"), *(pickle.dumps(plain, protocol) for protocol in (2, 4))]


def damaged(data: bytes, draw: random.Random) -> bytes:
    bytes_ = bytearray(data[:700] if draw.random() < 0.9 else data)
    for _ in range(draw.randrange(4)):
        at = draw.randrange(len(bytes_))
        kind = draw.randrange(4)
        if kind == 0:
            bytes_[at] = draw.randrange(256)
        elif kind == 1:
            del bytes_[at + 1 : at + draw.randrange(1, 9)]
        elif kind == 2:
            bytes_[at:at] = bytes(draw.choices(STEPS, k=draw.randrange(1, 6)))
        else:
            bytes_[at : at + 4] = draw.choice([0, 3, 70_000, 1 << 31]).to_bytes(4, "little")
    return bytes(bytes_)


@pytest.mark.parametrize("seed", range(3))
def test_the_loop_does_what_single_steps_do(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    draw, sources = random.Random(seed), seeds()
    cases = [*sources, *(damaged(draw.choice(sources), draw) for _ in range(400))]
    together = [answer(data) for data in cases]
    assert sum(isinstance(one, tuple) and isinstance(one[0], tuple) for one in together) > 20
    monkeypatch.setattr(inert_unpickler, "run_plain_steps", lambda *_: None)
    assert [answer(data) for data in cases] == together


def test_a_window_reads_on_and_gives_back_what_it_did_not_take() -> None:
    line = b"y" * 200_000 + b"\n"
    file = io.BytesIO(b"abc" + line + b"tail")
    window = Window(file)
    assert (window.read(3), window.readline(), window.read(1)) == (b"abc", line, b"t")
    window.give_back()
    assert file.tell() == 3 + len(line) + 1
    assert (window.read(9), window.readline(), window.read(1)) == (b"ail", b"", b"")
