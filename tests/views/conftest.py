"""Reports that figures are drawn of."""

import pytest
from drawn_models import experts, llama

import specdiag


@pytest.fixture(scope="session")
def reports(rxnfp, tmp_path_factory):
    """By number of layers, saved and read back; and their counterparts B."""
    made = {
        2: specdiag.analyze(llama(2), randomize=True, jobs=2),
        80: specdiag.analyze(llama(80), jobs=2),
        12: specdiag.analyze(rxnfp / "bert_pretrained", jobs=2),
        "2B": specdiag.analyze(llama(2, seed=1), jobs=2),
        "12B": specdiag.analyze(rxnfp / "bert_ft", jobs=2),
        "experts": specdiag.analyze(experts(2, 32), jobs=2),
        "expertsB": specdiag.analyze(experts(2, 32), jobs=2),
    }
    folder = tmp_path_factory.mktemp("reports")
    read = {n: specdiag.load_report(report.save(folder / f"{n}.json")) for n, report in made.items()}
    return read | {"80B": read[80]}


@pytest.fixture(scope="session")
def small(reports):
    return reports[2]
