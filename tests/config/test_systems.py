"""`system: NAME` stands for transfer modes and a fusion; `systems` sets several side by side."""

from __future__ import annotations

import pytest
import yaml

from fusionkit.config.systems import SYSTEMS
from fusionkit.config.validate import load_config
from fusionkit.errors import ConfigError

BASE = {
    "main": {"name": "bert", "model": "fusionkit/claims-transformer"},
    "complement": {"name": "timm_vit", "model": "fusionkit/digits-vit"},
    "data": "digit_claims",
}


@pytest.fixture
def write(tmp_path):
    def written(name: str = "own.yaml", /, **keys):
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**BASE, **keys}, sort_keys=False))
        return path

    return written


def chosen(experiment) -> tuple[str, str, str]:
    (complement,) = experiment.complements
    return experiment.main_transfer.name, complement.transfer.name, experiment.fusion.name


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_can_be_named(name, write):
    experiment = load_config([write(system=name)])
    overlay = SYSTEMS[name].overlay
    written = load_config([write(**overlay)])
    assert experiment.resolved == written.resolved
    assert "system" not in experiment.resolved


def test_keys_beside_a_system_hold_over_it(write):
    path = write(system="prompt_late_concat", complement_transfer="frozen")
    assert chosen(load_config([path])) == ("prompt", "frozen", "late_concat")


def test_arguments_beside_a_system_are_merged_into_it(write):
    experiment = load_config([write(system="blindprompt", fusion={"prompt_length": 3})])
    assert experiment.fusion.init["prompt_length"] == 3
    assert experiment.fusion.init["blind"] is True


def test_a_later_file_goes_before_an_earlier_system(write, tmp_path):
    write("base.yaml", system="late_concat")
    over = tmp_path / "over.yaml"
    over.write_text("base: base.yaml\nsystem: prompt_sequential\n")
    experiment = load_config([over])
    assert chosen(experiment) == ("frozen", "prompt", "conditional_prompt")
    assert experiment.fusion.init["dynamic"] is False


@pytest.mark.parametrize("order", [1, -1])
def test_on_the_command_line_a_system_is_the_start_wherever_it_stands(write, order):
    overrides = [("complement_transfer", "lora"), ("system", "late_concat")][::order]
    assert chosen(load_config([write()], overrides)) == ("fine_tune", "lora", "late_concat")


def test_an_unknown_system_gets_a_suggestion(write):
    with pytest.raises(
        ConfigError, match=r"own\.yaml: system: unknown system 'late_concate'.*late_"
    ):
        load_config([write(system="late_concate")])


def test_a_system_given_as_fusion_is_named(write):
    with pytest.raises(ConfigError, match="'prompt_mmbt' is a system: write `system: prompt_mmbt`"):
        load_config([write(fusion="prompt_mmbt")])


def test_baselines_may_be_systems(write):
    path = write(baselines={"both": {"system": "late_concat"}})
    experiment = load_config([path])
    assert chosen(experiment.baselines["both"]) == ("fine_tune", "fine_tune", "late_concat")
    assert chosen(experiment) == ("frozen", "prompt", "conditional_prompt")


def test_systems_are_a_list_of_names(write):
    experiment = load_config([write(systems=["late_concat", "main_only"], seeds=[3, 1])])
    assert list(experiment.systems) == ["late_concat", "main_only"]
    assert chosen(experiment.systems["late_concat"])[2] == "late_concat"
    assert experiment.systems["late_concat"].name == "late_concat"
    assert experiment.seeds == (3, 1)


def test_systems_are_configs_by_label(write):
    systems = {
        "late_concat": {"complement_transfer": "frozen"},
        "few experts": {"fusion": {"experts": 4}},
        "gone": None,
    }
    found = load_config([write(systems=systems)]).systems
    assert list(found) == ["late_concat", "few experts"]
    assert chosen(found["late_concat"]) == ("fine_tune", "frozen", "late_concat")
    assert found["few experts"].fusion.init["experts"] == 4


def test_a_run_is_the_same_whatever_it_is_compared_with(write):
    plain = load_config([write()]).resolved
    assert load_config([write(systems=["late_concat"], seeds=[1])]).resolved == plain


def test_without_seeds_there_is_the_one_seed(write):
    assert load_config([write(seed=7)]).seeds == (7,)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"systems": ["late_concat", "pfm"]}, r"systems\.pfm: system: unknown system 'pfm'.*'pmf'"),
        ({"systems": "pmf"}, "systems: expected a mapping of labels to configs, given 'pmf'"),
        ({"systems": {"a": 3}}, r"systems\.a: expected a config to merge over this one, given 3"),
        ({"systems": {"a": {"seeds": [1]}}}, "one of the systems cannot have seeds itself"),
        ({"baselines": {"a": {"systems": []}}}, "one of the baselines cannot have systems itself"),
        ({"systems": {"a": {"fusion": {"expert": 4}}}}, r"systems\.a\.fusion\.expert: .*experts"),
        ({"seeds": [1, 1]}, "seeds holds one of its numbers twice"),
        ({"seeds": [-1]}, "seeds are at least 0"),
    ],
)
def test_what_is_wrong_with_systems_is_said(write, keys, message):
    with pytest.raises(ConfigError, match=message):
        load_config([write(**keys)])
