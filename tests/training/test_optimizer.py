from __future__ import annotations

import pytest
import torch
from tiny import TinyComplement, TinyMain

from fusionkit.config.schema import OptimizerConfig
from fusionkit.errors import ConfigError
from fusionkit.fusion.conditional_prompt import ConditionalPrompt
from fusionkit.fusion.model import FusionModel
from fusionkit.training.optimizer import learning_rates, make_optimizer, make_schedule
from fusionkit.transfer.fine_tune import FineTune
from fusionkit.transfer.frozen import Frozen


class TinyImage(TinyMain):
    modality = "image"


def model(main=None) -> FusionModel:
    main = TinyMain() if main is None else main
    return FusionModel(ConditionalPrompt(Frozen(main), [FineTune(TinyComplement())], experts=2), 2)


def test_the_papers_rates_follow_the_modality():
    rates = learning_rates(model(TinyImage()), OptimizerConfig())
    assert rates == {"main": 4e-4, "complement": 5e-4, "fusion": 4e-4, "head": 4e-4}
    assert learning_rates(model(), OptimizerConfig())["fusion"] == 5e-4


def test_group_lr_goes_before_lr():
    config = OptimizerConfig(lr=1.0, group_lr={"complement": 1e-5})
    rates = learning_rates(model(), config)
    assert rates == {"main": 1.0, "complement": 1e-5, "fusion": 1.0, "head": 1.0}


def test_an_unknown_group_is_suggested():
    with pytest.raises(ConfigError, match="no parameter group 'heads'. Did you mean 'head'"):
        learning_rates(model(), OptimizerConfig(group_lr={"heads": 1.0}))


def test_every_trained_parameter_is_optimized_once_and_vectors_do_not_decay():
    made = model()
    optimizer = make_optimizer(made, OptimizerConfig())
    given = [p for group in optimizer.param_groups for p in group["params"]]
    trained = [p for p in made.parameters() if p.requires_grad]
    assert len(given) == len(trained)
    assert {id(p) for p in given} == {id(p) for p in trained}
    for group in optimizer.param_groups:
        decays = {p.ndim > 1 for p in group["params"]}
        assert decays == {group["weight_decay"] > 0}


def test_nothing_to_train_is_an_error():
    made = model().requires_grad_(False)
    with pytest.raises(ConfigError, match="Nothing is trained"):
        make_optimizer(made, OptimizerConfig())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OptimizerConfig(lr=1.0), [1, 1, 0.5, 0.5, 0.5, 0.25]),  # the paper: halved at 2 and 5
        (OptimizerConfig(lr=1.0, schedule="constant"), [1] * 6),
        (OptimizerConfig(lr=1.0, schedule="cosine"), [1, 0.933, 0.75, 0.5, 0.25, 0.067]),
    ],
)
def test_schedules(config, expected):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = make_schedule(optimizer, config, steps=6)["scheduler"]
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected, abs=1e-3)
