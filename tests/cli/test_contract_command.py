"""`fusionkit contract` on encoders that are right, broken, or cannot be built."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fusionkit import registry
from fusionkit.cli import main
from fusionkit.encoders.base import ComplementEncoder, Features
from fusionkit.testing import CHECKS, Case

FOR_COMPLEMENTS = 10  # checks that are not about layers


class Lengths:
    def __call__(self, raw):
        return torch.tensor([float(len(raw)), 1.0])

    def collate(self, rows):
        return {"x": torch.stack(list(rows))}


class Echo(ComplementEncoder):
    """The length of a text, as wide as one likes."""

    modality = "text"

    def __init__(
        self, dim: int = 2, wrong: bool = False, options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.dim, self.wrong, self.options = dim, wrong, options
        self.backbone = nn.Linear(2, dim)
        MADE.append(self)

    @property
    def out_dim(self):
        return self.dim + self.wrong

    def encode(self, inputs):
        return Features(self.backbone(inputs["x"]))

    def preprocessor(self, train):
        return Lengths()


class Strange(Echo):
    modality = "other"


MADE: list[Echo] = []


def own_case():
    return Case(Strange, ["a", "bb", "cccc"], lambda backbone, inputs: backbone(inputs["x"]))


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    MADE.clear()
    points = {
        "fusionkit.complement_encoders": {
            name: f"{__name__}:{cls}"
            for name, cls in {"echo": "Echo", "strange": "Strange", "cased": "Strange"}.items()
        },
        registry.CASES_GROUP: {"cased": f"{__name__}:own_case"},
    }
    monkeypatch.setattr(
        registry,
        "_installed_entry_points",
        lambda group: [EntryPoint(n, p, group) for n, p in points.get(group, {}).items()],
    )


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_right_encoder_passes_and_what_does_not_apply_is_left_out(capsys):
    assert main(["contract", "echo"]) == 0
    first, *rest = lines(capsys)
    assert first == "echo of unknown unknown: its default arguments"
    shown = [int(line.split()[0]) for line in rest if re.match(r" ?\d+  (passed|skipped)", line)]
    assert len(shown) == FOR_COMPLEMENTS
    assert " 6  passed   a row does not depend on its batch mates" in rest
    assert "             the case has no `upstream`" in rest
    assert any(line.startswith("8 passed, 0 failed, 18 skipped in ") for line in rest)
    assert rest[-1].startswith("What is not shown is for encoders with layers")


def test_broken_encoder_fails_with_the_reason_and_where_to_read_on(capsys):
    assert main(["contract", "echo", "--wrong", "true", "--dim=3"]) == 1
    out = lines(capsys)
    assert out[0] == "echo of unknown unknown: wrong: true, dim: 3"
    at = out.index("15  FAILED   shapes and masks are as declared")
    assert out[at + 1].strip().startswith("features.pooled is (4, 3)")
    assert out[-1] == "docs/contract.md says what each check is good for."


def test_json_has_every_check_and_nothing_else_is_printed(capsys):
    assert main(["contract", "echo", "--json", "--wrong", "true"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["passed"], found["case"]) == ("echo", False, "wrong: true")
    assert [result["number"] for result in found["results"]] == [c.number for c in CHECKS]
    failed = [result for result in found["results"] if result["status"] == "failed"]
    assert [result["number"] for result in failed] == [15]
    assert "out_dim" in failed[0]["message"]


def test_arguments_are_yaml_and_dotted_ones_merge():
    argv = ["--options", "{a: [1, null]}", "--options.b.c", "1e-3", "--options.b.d", "x"]
    assert main(["contract", "echo", *argv]) == 0
    assert MADE[0].options == {"a": [1, None], "b": {"c": 0.001, "d": "x"}}
    assert len({id(encoder.options) for encoder in MADE}) == len(MADE)  # none shares another's


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["echo", "--dimm", "3"], "--dimm: echo has no argument 'dimm'. Did you mean 'dim'?"),
        (["echo", "--dim", "wide"], "--dim: expected int, given 'wide'."),
        (["echo", "--dim"], "--dim needs a value"),
        (["echo", "dim", "3"], "Unexpected argument 'dim'"),
        (["ecko"], "Did you mean 'echo'"),
        (["strange"], "an entry point 'strange' in the group 'fusionkit.contract_cases'"),
        (["cased", "--dim", "3"], "No samples can be made up for the modality 'other'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_run_is_an_error(capsys, argv, message):
    assert main(["contract", *argv]) == 2
    assert message in capsys.readouterr().err


def test_a_case_of_its_own_is_taken_where_no_arguments_are_given(capsys):
    assert main(["contract", "cased"]) == 0
    out = lines(capsys)
    assert out[0] == "cased of unknown unknown: its own case"
    assert " 1  passed   equals the upstream model without prompts" in out


def test_a_case_of_another_distribution_is_not_taken(monkeypatch):
    entry = registry.find("complement_encoder", "cased")
    point = SimpleNamespace(name="cased", dist=SimpleNamespace(name="somebody-elses"))
    monkeypatch.setattr(registry, "_installed_entry_points", lambda group: [point])
    assert registry.load_case(entry) is None


def test_a_case_that_does_not_import_is_told_from_a_broken_encoder(capsys, monkeypatch):
    before = registry._installed_entry_points
    broken = [EntryPoint("echo", "no_such_package.case:case", registry.CASES_GROUP)]
    monkeypatch.setattr(
        registry,
        "_installed_entry_points",
        lambda group: broken if group == registry.CASES_GROUP else before(group),
    )
    assert main(["contract", "echo"]) == 2
    assert (
        "The contract case of 'echo' (no_such_package.case:case, of unknown) cannot be imported: "
        "ModuleNotFoundError" in capsys.readouterr().err
    )
    assert main(["contract", "echo", "--dim", "2"]) == 0


def test_an_encoder_that_cannot_be_made_is_told_with_a_hint(capsys, tmp_path):
    assert main(["contract", "bert", "--model", str(tmp_path / "nowhere")]) == 1
    out = "\n".join(lines(capsys))
    assert " 0  FAILED   the encoder and its inputs can be made" in out
    assert "WeightsError" in out
    assert "such as --weights random" in out


def test_a_main_encoder_is_checked_to_the_last_layer(capsys):
    sizes = "{img_size: 32, depth: 2, embed_dim: 24, num_heads: 2}"
    argv = ["--model", "vit_tiny_patch16_224", "--weights", "random", "--options", sizes]
    assert main(["contract", "timm_vit", *argv]) == 0
    out = lines(capsys)
    assert "10  passed   encode compiles as one full graph" in out
    assert "21  passed   layers are what run_layer runs" in out


def test_encoders_of_numbers_get_samples_that_fit_their_arguments():
    assert main(["contract", "vector", "--dim", "5"]) == 0
    argv = ["--numeric", "[age]", "--categorical", "[colour]", "--dim", "8", "--layers", "1"]
    assert main(["contract", "table", *argv]) == 0
