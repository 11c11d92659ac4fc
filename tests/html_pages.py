"""HTML pages, read and checked for balance, and names that try to break out of them."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = (
    "</script><script>alert(1)</script>",
    "\"' onmouseover=alert(1) x='",
    "<img src=https://example.org/x onerror=alert(2)>",
    "{{ 7 * 191 }}<!-- ",
    "abc‮txt.exe\n‏",
)
COLUMN = """[...document.querySelectorAll("#records tbody tr:not([hidden])")].map(row => row.cells[%d].textContent)"""
"""Texts of a column of the table of a page, from the top, as a script."""


class Read(HTMLParser):
    """The elements of a page, checked for balance, with the text and attributes of each."""

    VOID = ("meta", "path", "wbr", "br", "img")
    OPTIONAL = ("td", "tr", "th", "li", "dt", "dd", "p")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.elements, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert [t for t in self.open if t not in self.OPTIONAL] == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open[-1] != tag and self.open[-1] in self.OPTIONAL:
            self.open.pop()
        if tag not in self.VOID:
            assert self.open[-1:] == [tag], self.open
            self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data

    def of(self, tag):
        return [attrs for t, attrs in self.elements if t == tag]
