"""Activations of an MLP by what they leave open: how its neurons can be rescaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specdiag.architecture.wiring import UnknownWiring

_KEYS = (
    "hidden_act", "activation_function", "hidden_activation", "activation", "mlp_hidden_act", "feed_forward_proj",
)  # fmt: skip
_POWERS = {
    "relu": 1, "leaky_relu": 1, "prelu": 1, "relu2": 2, "relu^2": 2, "relu_squared": 2, "squared_relu": 2,
}  # fmt: skip
"""p where act(s x) = s^p act(x) for any s > 0."""
_LINEAR = ("linear", "identity")


def stated_activation(chain: Sequence[Mapping[str, object]]) -> str | None:
    """Find the activation in a config; None where it says none.

    Args:
        chain: sections of config.json, the most specific first.
    """
    return next((value for part in chain for key in _KEYS if isinstance(value := part.get(key), str)), None)


def power_of(stated: str | None, usual: str | None, *, is_gated: bool) -> int | None:
    """Tell by the activation how neurons can be rescaled.

    Args:
        stated: in the config.
        usual: of the architecture.
        is_gated: whether the MLP has a gate.

    Returns:
        `Mlp.power`.

    Raises:
        UnknownWiring: it is not known, or leaves more open than a scale of each neuron.
    """
    activation = stated or usual
    if activation is None and not is_gated:
        raise UnknownWiring("the config does not name its activation, which says how neurons can be rescaled")
    name = (activation or "").lower().removeprefix("gated-")
    if name in _LINEAR:
        raise UnknownWiring(f"with activation {activation} its neurons can be mixed, which is not taken out")
    power = _POWERS.get(name)
    if is_gated and power is not None:
        raise UnknownWiring(f"rows of a gate with {activation} can be rescaled as well, which is not taken out")
    return 1 if is_gated else power
