"""Names of numbers as a person reads them; files keep the names of fields.

>>> words("stable_rank/n"), words("frobenius_norm"), words("square_alpha")
('stable rank / size', 'Frobenius norm', 'square_alpha')
"""

from __future__ import annotations

_WORDS = {
    "stable_rank/n": "stable rank / size",
    "mp_spikes/n": "spikes / size",
    "mp_spikes": "spikes",
    "frobenius_norm": "Frobenius norm",
    "gauge_shift": "shift by form",
}
_SYMBOLS = ("square_alpha", "square_rho", "pl_alpha", "sigma_max")
"""Names of exponents and singular values, which tables show as they are."""


def words(name: str) -> str:
    """Write the name of a number.

    Args:
        name: a field of a report, a metric of a run or of the reference.
    """
    return name if name in _SYMBOLS else _WORDS.get(name, name.replace("_", " "))
