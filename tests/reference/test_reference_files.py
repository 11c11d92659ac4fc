"""Saved ranges: what comes back, what is refused in a sentence, and the file that comes with specdiag."""

import json
import re
from importlib.resources import files

import pytest
from assets import ASSETS
from reference_models import report
from reference_sources import SOURCES

import specdiag
from specdiag.errors import SourceError
from specdiag.reference.peers import Peers
from specdiag.reference.ranges import the_reference


@pytest.fixture
def saved(tmp_path):
    return specdiag.build_reference([report([1.5, 1.9], 0), report([1.6], 1)]).save(tmp_path / "r.json")


def test_it_comes_back(saved):
    found = specdiag.load_reference(saved)
    assert found == specdiag.load_reference(found.save(saved.with_name("again.json")))
    assert {row["metric"] for row in found.to_records()} == {"square_alpha", "rho", "stable_rank/n", "mp_spikes/n"}


def range_with(**fields):
    return lambda content: content["ranges"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (range_with(models=[]), "its models are"),
        (range_with(models=[0, 0]), "its models are"),
        (range_with(models=[0, 2]), r"its models are \[0, 2\] of 2 sources"),
        (range_with(models=[-1]), "its models are"),
        (range_with(n_matrices=1), "1 matrices of 2 models"),
        (range_with(quantiles=[1.5]), "its quantiles are"),
        (range_with(quantiles=[1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3]), "its quantiles are"),
        (range_with(quantiles=[0.5] * 7), "its quantiles are"),
        (range_with(least=[1.5]), "its models have"),
        (range_with(least=[9, 9]), "its models have"),
        (range_with(most=[1, 1]), "its models have"),
        (range_with(metric="stable_rank/n", quantiles=[0, 0, 0, 0, 0, 0, 2]), "two ranges|its quantiles are"),
        (range_with(role="charm"), "Invalid enum value 'charm'"),
        (range_with(model_class="novel"), "Invalid enum value 'novel'"),
        (lambda content: content["ranges"].append(content["ranges"][0]), "a role has two ranges of one metric"),
        (lambda content: content["sources"][0].update(n_parameters=-1), "has -1 parameters"),
        (lambda content: content["sources"][0].update(left_out="no"), "its models are"),
        (lambda content: content.update(novelty=1), "unknown field `novelty`"),
        (lambda content: content.update(schema=3), "is a reference of schema 3; this specdiag reads schema 2: upgrade"),
        (lambda content: content.update(schema=0), "is no reference"),
    ],
)
def test_what_no_models_can_give_is_refused(saved, change, problem):
    content = json.loads(saved.read_text())
    change(content)
    saved.write_text(json.dumps(content))
    refused(saved, problem)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
def test_no_number_is_refused(saved, number):
    text = saved.read_text()
    saved.write_text(re.sub(r"1\.9\b", number, text))
    refused(saved, "is no reference|is damaged")


def test_foreign_files_are_refused(saved, tmp_path):
    model = report([1.5], 0).save(tmp_path / "model.json", spectra=False)
    refused(model, "is a specdiag report, not a reference: make one with 'specdiag reference build -o'")
    saved.write_text("[" * 100_000)
    refused(saved, "is no reference")
    with saved.open("wb") as file:
        file.truncate(1 << 40)
    refused(saved, "cannot read .*: it has 1048576 MiB, and at most 16 MiB are read")
    refused(tmp_path / "none.json", "cannot read")
    refused(tmp_path, "cannot read")


def refused(path, problem):
    with pytest.raises(SourceError, match=problem) as error:
        specdiag.load_reference(path)
    assert "\n" not in str(error.value)


def test_reports_of_an_old_schema_are_refused_as_elsewhere(tmp_path):
    path = report([1.5], 0).save(tmp_path / "old.json", spectra=False)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema": content["schema"] - 1}, separators=(",", ":")))
    with pytest.raises(SourceError, match=r"is a specdiag report of schema \d+; this specdiag reads schema"):
        specdiag.build_reference([path])


def test_what_comes_with_specdiag(rxnmapper):
    assert len((files("specdiag.reference") / "shipped.json").read_bytes()) < 100_000
    found = the_reference(None)
    assert all(re.fullmatch(r"[\w-]+-[\d.]+(/[\w.]+)?", source.name) for source in found.sources)
    model = specdiag.analyze(rxnmapper)
    (place,) = (i for i, source in enumerate(found.sources) if source.name == "rxnmapper-0.4.3")
    own = specdiag.build_reference([model]).sources[0]
    assert (own.digest, own.n_parameters) == (found.sources[place].digest, found.sources[place].n_parameters)
    held = [r for r in found.ranges if place in r.models]
    assert len(held) == 24
    for r in held:
        alone = next(x for x in specdiag.build_reference([model]).ranges if x.place == r.place)
        assert r.quantiles[0] - 1e-3 <= alone.quantiles[0] <= alone.quantiles[-1] <= r.quantiles[-1] + 1e-3
    assert {source.licence for source in found.sources} == {"mit", "apache-2.0"}
    standing = Peers.of(model, found).standing(model.records)
    assert standing.startswith("6 of 6 matrices lie within the square_alpha of 5 other encoders of 567 k to 26 M")


def test_its_sources_are_those_of_make_reference():
    laid_out = {source.name for source in the_reference(None).sources}
    packages = {ASSETS[source.asset].package.replace("==", "-") for source in SOURCES}
    assert {name.partition("/")[0] for name in laid_out} == packages
