"""Analyses that keep their results in a folder, and the entries of that folder."""

import hashlib

from command import execute
from models import tensors

import specdiag


def analyze(state, folder, **options):
    return specdiag.analyze(tensors(state), device="cpu", cache=folder, **options)


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same(one, other):
    assert one.records == other.records
    for record in one:
        both = (one.eigenvalues(record.key), other.eigenvalues(record.key))
        assert both[0].tobytes() == both[1].tobytes()
        if record.rand_spectral_norm is not None:
            both = (one.eigenvalues(record.key, randomized=True), other.eigenvalues(record.key, randomized=True))
            assert both[0].tobytes() == both[1].tobytes()


def run(*arguments, cwd, cache, code=0):
    """Run a command that keeps its results in this cache, and give what it prints."""
    done = execute(*arguments, cwd=cwd, env={"SPECDIAG_CACHE": str(cache)})
    assert done.returncode == code, done.stderr
    return done.stdout


def reseal(path, content):
    """Write an entry under its right checksum."""
    name = path.name.removesuffix(".result")
    path.write_bytes(hashlib.sha256(name.encode() + content).digest() + content)
