"""Names of encoders before and after transformers 5, which names their modules anew in memory and not in files.

An adapter is saved under the names in memory (`vit.layers.0.attention.q_proj`), its base under those of version 4
(`vit.encoder.layer.0.attention.attention.query`).
"""

from __future__ import annotations

import re

_LAYER = re.compile(r"(?P<stem>(?:.+\.)?)(?:encoder\.)?layers?\.(?P<number>[0-9]{1,9})\.(?P<rest>.+)")
_PLACES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (place, re.compile(pattern))
    for place, pattern in (
        *((part, rf"(attention\.){{0,2}}(self\.)?({name}|{part}_proj)") for part, name in
          (("q", "query"), ("k", "key"), ("v", "value"))),
        ("o", r"attention\.(output\.dense|output|o_proj)"),
        ("fc1", r"intermediate\.dense|mlp\.(dense1|fc1)"),
        ("fc2", r"output\.dense|mlp\.(dense2|fc2)"),
    )
)  # fmt: skip


def places(parameter: str) -> tuple[str, ...]:
    """Write the place of a matrix in an encoder's layer in one spelling for both versions; none of other names.

    Args:
        parameter: its name.

    Returns:
        The place with the name of the model in front, and, of a model of one name, without it: `vit.0.q`, `.0.q`.
    """
    module = parameter.removesuffix(".weight")
    match = _LAYER.fullmatch(module)
    if match is None or module == parameter:
        return ()
    stem = match["stem"].removesuffix("encoder.").rstrip(".")
    found = next((name for name, pattern in _PLACES if pattern.fullmatch(match["rest"])), None)
    if found is None:
        return ()
    bare = f".{match['number']}.{found}"
    return (
        (bare,)
        if not stem
        else (f"{stem}{bare}", bare)
        if "." not in stem and stem != "decoder"
        else (f"{stem}{bare}",)
    )
