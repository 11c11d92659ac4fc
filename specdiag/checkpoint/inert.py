"""Records of what a pickle wants to make or run, and what is not made."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ForeignClass:
    """The name of a class or function that a pickle asks for.

    Attributes:
        name: its module and name.
    """

    name: str


@dataclass(slots=True, eq=False)
class Inert:
    """An object that was not made.

    Attributes:
        made_by: the class or function that would have made it.
        args: what that would have been given.
        state: what its attributes would have been set to.
        items: keys and values that it would hold as a dictionary.
        elements: what it would hold as a list.
    """

    made_by: ForeignClass
    args: tuple[object, ...] = ()
    state: list[object] = field(default_factory=list[object])
    items: list[tuple[object, object]] = field(default_factory=list[tuple[object, object]])
    elements: list[object] = field(default_factory=list[object])

    @property
    def kind(self) -> str:
        """The name of the object's class, or of the function that makes it where the pickle names no class."""
        foreign = next((arg for arg in self.args if isinstance(arg, ForeignClass)), None)
        return (foreign or self.made_by).name
