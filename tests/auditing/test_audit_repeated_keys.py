"""A key that config.json gives twice: transformers takes the last."""

from __future__ import annotations

import json

from audited_models import CONFIG, llama, save

import specdiag


def test_a_key_given_twice_is_a_warning_with_both_values(tmp_path):
    path = save(tmp_path / "m", llama(), CONFIG)
    text = json.dumps(CONFIG)
    (path / "config.json").write_text('{"num_hidden_layers": 3, "vocab_size": 200, ' + text[1:])
    audit = specdiag.audit(path, device="cpu")
    assert [(f.check, f.severity, f.value) for f in audit.findings] == [
        ("config_repeated", "warn", "num_hidden_layers is given as 3 and 10")
    ]
    assert "Took the last num_hidden_layers of the two in config.json, as transformers does." in audit.coverage.notes
