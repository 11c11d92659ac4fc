import ast
import random
import tomllib

import pytest

from specdiag.text import markdown
from specdiag.text.printable import in_json, in_toml, printable, restored, reversible
from specdiag.views.export import export, from_csv, to_csv

OBEYED = [*map(chr, (*range(32), *range(127, 160))), *"\u202a\u202e\u2066\u2069\u200b\u200d\ufeff\u2028\u2029\u00ad\u115f\u3164\u034f\ufe0f\udc80\U000e0041\U000e0101"]  # fmt: skip
LETTERS = "Ääßжя漢字हिन्दी한글ελ😀 _.-[]"


@pytest.mark.parametrize("c", OBEYED, ids=lambda c: f"U+{ord(c):04X}")
def test_no_character_that_is_obeyed_or_hidden_is_left(c):
    shown = printable(f"a{c}b")
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) > 3
    assert printable(shown) == shown
    assert restored(reversible(f"a{c}\\b")) == f"a{c}\\b"


def test_letters_of_all_scripts_stay():
    assert printable(LETTERS) == LETTERS
    assert printable("one\ntwo\t", keep="\n") == "one\ntwo\\t"


def test_reversible_tells_an_escape_from_its_picture():
    assert reversible("\x1b") != reversible("\\x1b")
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices([*OBEYED, *LETTERS, *r"\xunrtU0123abc"], k=rng.randrange(12)))
        assert restored(reversible(text)) == text
        assert printable(reversible(text)) == reversible(text)


def test_json_and_toml_keep_their_content():
    import json

    text = "".join(c for c in OBEYED if c != "\udc80") + LETTERS
    data = json.dumps({text: [text]}, ensure_ascii=False).encode()
    shown = in_json(data + b"\n")
    assert json.loads(shown) == {text: [text]}
    assert printable(shown.decode(), keep="\n") == shown.decode()
    toml = in_toml('key = "a\u202e\U000e0101é"\n'.encode())
    assert tomllib.loads(toml.decode()) == {"key": "a\u202e\U000e0101é"}
    assert "\u202e" not in toml.decode()


FORMULAS = ["=1+1", "+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", " =1", "\u00a0=1", "\u200b=1", "＝1", "'quoted", "''", "' =1", "-", "\\t=1"]  # fmt: skip


@pytest.mark.parametrize("text", [*FORMULAS, "plain.weight", "a,b", 'a"b', "a;b", "", "\\x1b", "a\nb"])
def test_csv_cells_are_text_and_can_be_taken_back(text):
    import csv
    import io

    data = export([{"name": text, "alpha": -0.25}], ["name", "alpha"], "csv").decode()
    assert printable(data, keep="\n") == data
    assert data.count("\n") == 2
    (row,) = csv.DictReader(io.StringIO(data))
    assert from_csv(row["name"]) == text
    assert row["alpha"] == "-0.25"
    assert row["name"].lstrip()[:1] not in tuple("=+-@\t\r＝＋－＠")
    assert (to_csv(text) == text) == (text not in FORMULAS and "\\" not in text and "\n" not in text)


@pytest.mark.parametrize(
    "text", ["<script>x</script>", "a|b", "a\r\n| forged | row |", "`code` *b* [l](http://127.0.0.1)", "&lt;", "www.x.org", "a_b__c__", "$x$"]
)  # fmt: skip
@pytest.mark.parametrize("column", ["name", "reason"])
def test_markdown_shows_text_as_it_is(text, column):
    import re

    data = export([{column: text, "alpha": 1.0}], [column, "alpha"], "md").decode()
    assert len(data.splitlines()) == 3
    last = data.splitlines()[-1]
    assert len(re.findall(r"(?<!\\)\|", last)) == 3
    assert "<" not in last
    bare = re.sub(r"`[^`]*`|\\.", "", last)
    assert not re.search(r"[`*_\[\]]|://|www\.", bare)


def test_code_where_it_is_safe():
    assert markdown.code("model.layers.0.self_attn.q_proj.weight") == "`model.layers.0.self_attn.q_proj.weight`"
    assert markdown.code("") == ""
    assert "`" not in markdown.code(" a").replace("\\`", "")


def test_torch_code_of_a_plan_holds_the_names():
    from specdiag.views.plan_export import _literal

    names = ["a", '"quoted"', "'both\" ", "\x1b[31m", "\u202e", "😀", "back\\slash", "new\nline", "\x7f", "\x9b"]
    code = _literal(dict.fromkeys(names, 0.5))
    assert code.isascii()
    assert printable(code, keep="\n") == code
    assert list(ast.literal_eval(code)) == names
