"""Against small classes that are registered in memory, so that no backbone is built."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml

from fusionkit import registry
from fusionkit.config.validate import experiment_from_mapping, load_config
from fusionkit.data.base import Dataset
from fusionkit.encoders.base import ComplementEncoder, MainEncoder
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion
from fusionkit.transfer.base import Transfer


class FakeMain(MainEncoder):
    def __init__(self, model: str, depth: int = 2, weights: str | None = None) -> None: ...


class FakeComplement(ComplementEncoder):
    def __init__(self, dim: int = 8, hook: Any = None) -> None: ...


class FakeFusion(Fusion):
    def __init__(
        self, main: Any, complements: Any, experts: int = 16, router: Literal["a", "b"] = "a"
    ) -> None: ...


class FakePrompt(Transfer):
    needs_layers: ClassVar[bool] = True

    def __init__(self, encoder: ComplementEncoder, length: int = 4) -> None: ...


@dataclass(frozen=True)
class Column:
    column: str
    modality: Literal["image", "text"] = "text"


class FakeData(Dataset):
    def __init__(
        self,
        root: str,
        columns: dict[str, str | Column],
        shares: tuple[float, float] = (0.5, 0.5),
    ) -> None: ...


PLUGINS = {
    "main_encoder": {"fake_main": FakeMain},
    "complement_encoder": {"fake_complement": FakeComplement},
    "fusion": {"fake_fusion": FakeFusion},
    "transfer": {"fake_prompt": FakePrompt},
    "dataset": {"fake_data": FakeData},
}

CONFIG = """\
main: {name: fake_main, model: m}
complement: fake_complement
complement_transfer: frozen
fusion: {name: fake_fusion, experts: 4}
data: {name: fake_data, root: here, columns: {a: x, b: {column: y, modality: image}}}
optimizer: {lr: 4e-4, group_lr: {head: 1e-3}}
"""


@pytest.fixture
def config(monkeypatch, tmp_path):
    points = {
        registry.GROUPS[kind]: [
            EntryPoint(name, f"{cls.__module__}:{cls.__qualname__}", registry.GROUPS[kind])
            for name, cls in classes.items()
        ]
        for kind, classes in PLUGINS.items()
    }
    monkeypatch.setattr(registry, "_installed_entry_points", points.__getitem__)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG)
    return "mine.yaml"


def problem(config: str, *overrides: tuple[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config([config], overrides)
    return str(caught.value)


def test_defaults_are_filled_in_and_values_coerced(config):
    experiment = load_config([config], [("complement.dim", "'3'")])
    assert experiment.name == "mine"
    assert experiment.output == "runs"
    assert experiment.main.init == {"model": "m", "depth": 2, "weights": None}
    assert experiment.complements[0].encoder.init == {"dim": 3, "hook": None}
    assert experiment.fusion.init == {"experts": 4, "router": "a"}
    assert experiment.data.init["columns"] == {"a": "x", "b": Column("y", "image")}
    assert experiment.optimizer.group_lr == {"head": 1e-3}
    assert experiment.trainer.max_epochs == 12


def test_resolved_reads_back_as_the_same_experiment(config):
    overrides = [
        ("more_complements", "[{encoder: {name: fake_main, model: z}, transfer: fake_prompt}]"),
        ("baselines.alone", "{complement: null, more_complements: []}"),
        ("baselines.narrow", "{fusion: {experts: 2}, trainer: {max_epochs: 1}}"),
    ]
    experiment = load_config([config], overrides)
    text = yaml.safe_dump(dict(experiment.resolved))
    assert experiment_from_mapping(yaml.safe_load(text)) == experiment


def test_baselines_are_merged_over_the_config(config):
    experiment = load_config([config], [("baselines.alone", "{complement: null}")])
    baseline = experiment.baselines["alone"]
    assert (baseline.name, baseline.complements) == ("alone", ())
    assert baseline.fusion == experiment.fusion
    assert len(experiment.complements) == 1


def test_unknown_argument_is_suggested_with_file_and_key(config):
    Path(config).write_text(CONFIG.replace("experts", "expert"))
    assert problem(config) == (
        "mine.yaml: fusion.expert: fake_fusion has no argument 'expert'. "
        "Did you mean 'experts'? It takes: experts, router."
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fusion.experts", "many", "fusion.experts: expected int, given 'many'."),
        ("fusion.experts", "null", "fusion.experts: expected int, given null."),
        ("fusion.router", "c", "fusion.router: expected 'a' or 'b', given 'c'."),
        ("fusion.main", "x", "fusion.main: fake_fusion has no argument 'main'."),
        ("main", "{name: fake_main, model: null}", "main.model: expected str, given null."),
        ("data.shares", "[1]", "data.shares: expected tuple[float, float], given [1]."),
        ("data.columns.c", "{colum: z}", "Column: Option 'colum' is not accepted."),
        ("loader.batch_siz", "3", "Did you mean 'batch_size'"),
        ("loader", "3", "loader: expected a mapping of its keys, given 3."),
        ("loader.batch_size", "0", "loader: batch_size is 0; it must be at least 1."),
        ("seed", "-1", "seed: seed is -1; it must be at least 0."),
        ("trainer.devices", "{}", "trainer.devices: expected int or str or list[int], given {}."),
        ("fuson", "x", "fuson: unknown key. Did you mean 'fusion'?"),
        ("main", "fake_mian", "main: Unknown main encoder 'fake_mian'. Did you mean 'fake_main'?"),
        ("main", "fake_complement", "main: 'fake_complement' has no layers to prompt"),
        ("main", "null", "main: give a name, or a mapping with `name`. Known: "),
        ("more_complements", "[3]", "more_complements.0: expected {encoder, transfer, field}"),
        ("baselines.a.baselines", "{}", "baselines.a.baselines: one of the baselines"),
        ("baselines.a.fusion.expert", "1", "baselines.a.fusion.expert: fake_fusion has no"),
    ],
)
def test_problem_names_source_key_and_what_was_given(config, key, value, message):
    text = problem(config, (key, value))
    assert text.startswith("command line: ")
    assert message in text


def test_missing_argument_is_named_with_its_type(config):
    text = problem(config, ("baselines.a.data", "table"), ("data", "null"))
    assert "data: give a name" in text
    text = problem(config, ("main", "{name: bert}"), ("main", "fake_main"))
    assert text == "command line: main.model: fake_main needs it and has no default: str."


def test_all_problems_of_a_step_are_listed(config):
    text = problem(config, ("complement", "fake"), ("trainer.max_epoch", "1"), ("seed", "x"))
    assert text.startswith("The config has 3 problems:")
    assert "  1. command line: seed" in text


def test_problem_that_baselines_inherit_is_reported_once(config):
    text = problem(config, ("fusion.expert", "1"), ("baselines.a.seed", "1"))
    assert text.count("expert:") == 1


@pytest.mark.parametrize("stated", [True, False])
def test_prompt_transfer_needs_layers(config, monkeypatch, stated):
    overrides = [("complement_transfer", "fake_prompt")]
    if not stated:
        Path(config).write_text(CONFIG.replace("complement_transfer: frozen\n", ""))
        overrides = []
    name = "'fake_prompt'" if stated else "'prompt' (the default)"
    assert (
        f"complement_transfer: {name} needs layers to prompt; 'fake_complement' has none. "
        "Use a mode that needs none, such as frozen, lora or fine_tune."
        in problem(config, *overrides)
    )


def test_a_main_encoder_as_complement_may_be_prompted(config):
    experiment = load_config(
        [config],
        [("complement", "{name: fake_main, model: x}"), ("complement_transfer", "fake_prompt")],
    )
    assert experiment.complements[0].transfer.init == {"length": 4}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("{name: tim_cnn}", r"complement.encoder: Unknown complement encoder 'tim_cnn'. Did you"),
        ("{name: timm_cnn, modl: x}", r"complement.encoder.modl: .*Did you mean 'model'"),
        ("{name: timm_cnn, augment: nonsense}", r"complement.encoder.augment: .*'nonsense'"),
        ("{model: x}", r"complement.encoder: give a name"),
    ],
)
def test_an_encoder_inside_of_video_is_checked_like_any_other(tmp_path, stated, message):
    file = tmp_path / "a.yaml"
    file.write_text(
        f"main: timm_vit\ncomplement: {{name: video, encoder: {stated}}}\n"
        "complement_transfer: frozen\ndata: digit_claims\n"
    )
    with pytest.raises(ConfigError, match=message):
        load_config([file])


def test_no_class_path_is_ever_imported(config):
    value = "{class_path: subprocess.Popen, init_args: {args: [id]}}"
    assert "class paths are not allowed" in problem(config, ("complement.hook", value))


def test_missing_main_and_data_are_both_named(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("seed: 1")
    text = problem(str(path))
    assert f"{path}: main: give a name" in text
    assert f"{path}: data: give a name" in text


def test_files_and_overrides_are_merged_over_a_start(config):
    start = (load_config([config]).resolved, "runs/mine")
    experiment = load_config([], [("fusion.experts", "2"), ("name", "again")], start)
    assert (experiment.name, experiment.fusion.init["experts"]) == ("again", 2)
    with pytest.raises(ConfigError, match=r"^runs/mine: fusion\.experts: expected int"):
        load_config(
            [], (), ({**start[0], "fusion": {"name": "fake_fusion", "experts": "x"}}, start[1])
        )
