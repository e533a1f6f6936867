"""The section `missing` of a config."""

from __future__ import annotations

import re

import pytest
import yaml

from fusionkit.config.schema import MissingConfig
from fusionkit.config.validate import experiment_from_mapping
from fusionkit.errors import ConfigError


def experiment(config, **missing):
    return experiment_from_mapping({**config, "missing": missing}, "c.yaml")


def test_nothing_may_be_missing_by_default(tiny_config):
    made = experiment_from_mapping(tiny_config).missing
    assert made == MissingConfig(allow=[], unreadable=False, dropout=0.0, mask=None)
    assert made.dropout_of("main") == 0


def test_one_rate_for_all_or_one_for_each():
    one = MissingConfig(allow=["main", "complement"], dropout=0.2)
    assert [one.dropout_of(r) for r in ("main", "complement", "complement_2")] == [0.2, 0.2, 0]
    each = MissingConfig(allow=["main", "complement"], dropout={"main": 0.1})
    assert [each.dropout_of(role) for role in ("main", "complement")] == [0.1, 0]


def test_it_is_resolved_and_reads_back(tiny_config):
    for dropout in (0.25, {"complement": 0.5}):
        made = experiment(tiny_config, allow=["complement"], dropout=dropout, mask="m.csv")
        assert made.resolved["missing"]["dropout"] == dropout
        again = yaml.safe_load(yaml.safe_dump(dict(made.resolved)))
        assert experiment_from_mapping(again).missing == made.missing


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"allow": ["complemnt"]}, "allow: there is no role 'complemnt'. Did you mean 'complement"),
        ({"allow": ["complement_1"]}, "Roles are main, complement, complement_2, ..."),
        (
            {"allow": ["complement_2"]},
            "this config has no complement_2. Did you mean 'complement'? It has: main, complement.",
        ),
        ({"dropout": 0.1}, "missing: dropout: nothing may be missing yet. Say in allow which"),
        ({"mask": "m.csv", "unreadable": True}, "unreadable and mask: nothing may be missing yet."),
        (
            {"allow": ["main"], "dropout": {"complement": 0.1}},
            "dropout names complement, allow does not; add complement to allow.",
        ),
        (
            {"allow": ["main"], "dropout": 1.0},
            "dropout is a probability, at least 0 and below 1, given 1.0.",
        ),
        ({"allow": ["main"], "dropout": {"main": -0.1}}, "and below 1, given {'main': -0.1}."),
        ({"allow": "main"}, "missing.allow: expected list[str], given 'main'."),
        ({"alow": ["main"]}, "missing has no argument 'alow'. Did you mean 'allow'?"),
    ],
)
def test_what_it_can_get_wrong(tiny_config, missing, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment(tiny_config, **missing)


def test_a_baseline_may_leave_out_an_encoder_that_it_inherits_the_permission_for(tiny_config):
    baseline = {"complement": None, "fusion": "main_only"}
    made = experiment({**tiny_config, "baselines": {"main": baseline}}, allow=["complement"])
    assert made.baselines["main"].missing.allow == ["complement"]


def test_further_complements_are_roles(tiny_config):
    more = [{"encoder": "tiny_complement", "transfer": "frozen", "field": "b"}]
    config = {**tiny_config, "more_complements": more}
    assert experiment(config, allow=["complement_2"]).missing.allow == ["complement_2"]
    with pytest.raises(ConfigError, match=r"no complement_2\..* It has: main, complement\."):
        experiment({**config, "complement": None}, allow=["complement_2"])
