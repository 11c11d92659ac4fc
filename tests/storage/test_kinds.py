"""Saved records of another schema are refused in one sentence that names both and the remedy; none is half-read."""

import hashlib
import json

import msgspec
import pytest

from specdiag.auditing.records import AuditReport
from specdiag.comparison.records import Comparison
from specdiag.decay.plan import DecayPlan
from specdiag.dynamics.norm_log import Watched
from specdiag.dynamics.records import Simulation
from specdiag.dynamics.run_check import RunCheck
from specdiag.errors import SourceError
from specdiag.files import json_decoder
from specdiag.rates.plan import RatePlan
from specdiag.reference.ranges import ReferenceRanges
from specdiag.report import _ReportFile
from specdiag.storage import kinds
from specdiag.storage.kinds import Kind, read_record
from specdiag.trajectories.ledger import Ledger
from specdiag.trajectories.records import Trajectory

KINDS = [value for value in vars(kinds).values() if isinstance(value, Kind)]
decode = json_decoder(dict[str, object])


def saved(folder, **content):
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("step", [-1, 1])
def test_another_schema_is_named(tmp_path, kind, step):
    if not (schema := kind.schema + step):
        return
    path = saved(tmp_path, schema=schema, **{kind.field: [], "novelty": 1})
    remedy = kind.remedy if step < 0 else "upgrade specdiag"
    with pytest.raises(SourceError) as refused:
        read_record(path, decode, kind)
    assert str(refused.value) == (
        f"{path} is a {kind.name} of schema {schema}; this specdiag reads schema {kind.schema}: {remedy}"
    )


def refuse(data):
    raise msgspec.DecodeError("Object contains unknown field")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_record_of_another_kind_is_not_taken_for_an_old_one(tmp_path, kind):
    for other in KINDS:
        if other is not kind:
            for schema in (kind.schema, 99):
                path = saved(tmp_path, schema=schema, **{other.field: []})
                with pytest.raises(SourceError, match=f"is an? {other.name}, not an? {kind.name}: {kind.remedy}"):
                    read_record(path, refuse, kind)


RECORDS = {
    kinds.REPORT: _ReportFile,
    kinds.PLAN: DecayPlan,
    kinds.RATES: RatePlan,
    kinds.COMPARISON: Comparison,
    kinds.AUDIT: AuditReport,
    kinds.TRAJECTORY: Trajectory,
    kinds.LEDGER: Ledger,
    kinds.SIMULATION: Simulation,
    kinds.NORM_CHECK: RunCheck,
    kinds.WATCHED: Watched,
    kinds.REFERENCE: ReferenceRanges,
}
FIELDS = {
    "specdiag report": (8, "e55fb464c9ca639d"),
    "decay plan": (9, "05e3a5d74d6ae3d0"),
    "plan of learning rates": (1, "65e8522d4269ede0"),
    "comparison": (10, "51052a157fca5313"),
    "audit": (8, "37e94e9c4546fb25"),
    "trajectory": (6, "b1ae05cccee08c33"),
    "ledger of a trajectory": (3, "769587841390a164"),
    "simulation": (2, "824ee8d4043e36e8"),
    "check of logged norms": (1, "6ff9123fa3f840b0"),
    "list of watched modules": (4, "14dadd70e172ac47"),
    "reference": (2, "86fa55df0159a104"),
}
"""The schema of each kind, and the digest of the names and types of its fields, nested records included."""


def digest(record):
    (schema,), components = msgspec.json.schema_components([record], ref_template="{name}")
    return hashlib.sha256(json.dumps(described(schema, components), sort_keys=True).encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def digests():
    return {kind.name: digest(record) for kind, record in RECORDS.items()}


def described(schema, components):
    """The schema without what may change freely: names of classes, documentation and default values.

    The keys' type of a dictionary is left out as well: msgspec describes it from 0.23 on.
    """
    if isinstance(schema, list):
        return [described(part, components) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return described(components[schema["$ref"]], components)
    fields = schema.get("properties", {})
    kept = {
        k: v for k, v in schema.items() if k not in ("properties", "propertyNames", "title", "description", "default")
    }
    kept["properties"] = [[name, described(fields[name], components)] for name in sorted(fields)]
    return {k: v if k == "properties" else described(v, components) for k, v in kept.items()}


def test_every_kind_has_its_record():
    assert {*RECORDS} == {*KINDS} == {*kinds.KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_changed_fields_raise_the_schema(kind, digests):
    schema, fields = FIELDS[kind.name]
    found = digests[kind.name]
    if kind.schema == schema:
        assert found == fields, (
            f"the fields of a {kind.name} changed and its schema is still {schema}: raise it to {schema + 1} in "
            f"storage/kinds.py, and write ({schema + 1}, '{found}') here"
        )
    else:
        assert (kind.schema, found) == FIELDS[kind.name], f"write ({kind.schema}, '{found}') here for a {kind.name}"


def test_the_digest_sees_fields_and_types_of_nested_records():
    class Inner(msgspec.Struct):
        """A record."""

        a: int

    def digest_with(inner, default=0):
        return digest(msgspec.defstruct("Outer", [("one", inner), ("b", int, default)]))

    other = msgspec.defstruct("Inner", [("a", float)])
    more = msgspec.defstruct("Inner", [("a", int), ("description", str, "")])
    documented = msgspec.defstruct("Renamed", [("a", int)], namespace={"__doc__": "Documented anew."})
    assert digest_with(Inner) == digest_with(documented) == digest_with(Inner, 5)
    assert len({digest_with(Inner), digest_with(other), digest_with(more)}) == 3
