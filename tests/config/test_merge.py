from pathlib import Path

import pytest

from fusionkit.config.merge import read_config
from fusionkit.errors import ConfigError


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


BERT = "main: {name: bert, model: tiny, pooling: mean}\nfusion: {experts: 4, top_k: 2}\n"


def test_different_name_replaces_the_node(write):
    values = read_config([write("a.yaml", BERT)], [("main", "timm_vit")]).values
    assert values["main"] == {"name": "timm_vit"}


def test_same_name_and_no_name_merge(write):
    file = write("a.yaml", BERT)
    overrides = [("main", "{name: bert, pooling: first}"), ("main.max_length", "9")]
    assert read_config([file], overrides).values["main"] == {
        "name": "bert",
        "model": "tiny",
        "pooling": "first",
        "max_length": 9,
    }


def test_arguments_without_a_name_merge_over_the_default_component(write):
    values = read_config([write("a.yaml", BERT)], [("fusion.experts", "8")]).values
    assert values["fusion"] == {"name": "conditional_prompt", "experts": 8, "top_k": 2}


def test_null_removes_a_complement(write):
    file = write("a.yaml", "complement: {name: bow, dim: 3}")
    assert read_config([file], [("complement", "null")]).values["complement"] is None


def test_scalars_and_lists_replace(write):
    file = write("a.yaml", "optimizer: {milestones: [1, 2], lr: 1}")
    merged = read_config([file], [("optimizer.milestones", "[3]"), ("optimizer.lr", "4e-4")])
    assert merged.values["optimizer"] == {"milestones": [3], "lr": 4e-4}


def test_swap_rule_inside_more_complements_and_baselines(write):
    file = write(
        "a.yaml",
        "more_complements: [{encoder: {name: bow, dim: 3}}, {encoder: bert}]\n"
        "fusion: {experts: 4}\n"
        "baselines: {late: {fusion: {name: main_only}}}\n",
    )
    merged = read_config(
        [file],
        [("more_complements.0.encoder", "bert"), ("more_complements.1.encoder.model", "x")],
    )
    assert merged.values["more_complements"] == [
        {"encoder": {"name": "bert"}},
        {"encoder": {"name": "bert", "model": "x"}},
    ]
    assert merged.variant("late", merged.values["baselines"]["late"])["fusion"] == {
        "name": "main_only"
    }
    assert merged.values["fusion"] == {"name": "conditional_prompt", "experts": 4}


def test_swap_rule_inside_an_encoder_that_takes_another(write):
    file = write(
        "a.yaml",
        "complement: {name: video, encoder: {name: timm_vit, model: x}}\n"
        "data: {name: table, fields: {name: title, image: photo}}\n",
    )
    merged = read_config(
        [file], [("complement.encoder.name", "timm_cnn"), ("data.fields.name", "caption")]
    )
    assert merged.values["complement"] == {"name": "video", "encoder": {"name": "timm_cnn"}}
    assert merged.values["data"]["fields"] == {"name": "caption", "image": "photo"}  # not a swap
    bare = write("b.yaml", "complement: {name: video, encoder: timm_vit}")
    merged = read_config([bare], [("complement.encoder.model", "x")])
    assert merged.values["complement"]["encoder"] == {"name": "timm_vit", "model": "x"}
    merged = read_config([file], [("complement.encoder", "timm_vit")])
    assert merged.values["complement"]["encoder"] == {"name": "timm_vit", "model": "x"}


def test_index_beyond_more_complements_is_named(write):
    file = write("a.yaml", "more_complements: [{encoder: bow}]")
    with pytest.raises(ConfigError, match=r"more_complements\.3: there are 1, counted from 0"):
        read_config([file], [("more_complements.3.encoder", "bert")])


def test_base_is_relative_to_its_file_and_merged_first(write):
    write("base/common.yaml", "seed: 1\noutput: there\n")
    write("base/data.yaml", "base: common.yaml\nseed: 2\n")
    file = write("run/a.yaml", "base: [../base/data.yaml, ../base/common.yaml]\noutput: here\n")
    merged = read_config([file])
    assert (merged.values["seed"], merged.values["output"]) == (2, "here")
    assert merged.source(("seed",)) == "base/data.yaml"
    assert merged.source(("output",)) == "run/a.yaml"


def test_later_files_win(write):
    merged = read_config([write("a.yaml", "seed: 1"), write("b.yaml", "seed: 2")])
    assert merged.values["seed"] == 2


def test_circle_of_bases_is_spelled_out(write):
    write("a.yaml", "base: b.yaml")
    write("b.yaml", "base: a.yaml")
    with pytest.raises(ConfigError, match=r"circle: a\.yaml -> b\.yaml -> a\.yaml"):
        read_config(["a.yaml"])


def test_source_of_a_replaced_node_is_forgotten(write):
    merged = read_config([write("a.yaml", BERT)], [("main", "timm_vit")])
    assert merged.source(("main", "model")) == "command line"
    assert merged.source(("fusion", "top_k")) == "a.yaml"


def test_missing_file_names_close_ones(write):
    write("configs/quickstart.yaml", "")
    with pytest.raises(ConfigError, match=r"configs/quikstart\.yaml does not exist.*'quickstart"):
        read_config(["configs/quikstart.yaml"])


def test_missing_base_names_the_file_that_asked(write):
    file = write("a.yaml", "base: gone.yaml")
    with pytest.raises(ConfigError, match=r"gone\.yaml \(base of a\.yaml\) does not exist"):
        read_config([file])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nmain: [1,\n", r"a\.yaml, line \d: not valid YAML"),
        ("seed: 1\nseed: 2\n", r"a\.yaml, line 2: not valid YAML: the key 'seed' is given twice"),
        ("- 1\n", r"a\.yaml: a config is a mapping of keys to values, given a list"),
        ("base: 3\n", r"a\.yaml: base: give a path or a list of paths, given 3"),
    ],
)
def test_broken_file_is_named_with_its_line(write, text, message):
    with pytest.raises(ConfigError, match=message):
        read_config([write("a.yaml", text)])


def test_override_that_is_not_yaml_says_how_to_quote_it(write):
    with pytest.raises(
        ConfigError, match=r"command line: output: the value '@x' is not valid YAML"
    ):
        read_config([], [("output", "@x")])
