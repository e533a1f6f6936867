"""What only a GPU can show."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.steps import Case, Step, _texts
from fusionkit.cli import main
from fusionkit.config.schema import OptimizerConfig
from fusionkit.training.optimizer import make_optimizer
from fusionkit.training.task import FusionTask

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

BERT = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 64, "vocab_size": 20_000,
}  # fmt: skip
TINY = Case("tiny", "bert", {"config": BERT, "weights": "random"}, 2, _texts(6))


@pytest.mark.parametrize("fusion", [{}, {"router": "multimodal"}, {"top_k": 2}])
def test_nothing_in_a_step_waits_for_the_gpu(fusion):
    step = Step(TINY, "cuda", importance_weight=0.01, **fusion)
    config = OptimizerConfig()
    task = FusionTask(step.model, "single_label", 3, config, frozen={}).cuda()
    optimizer = make_optimizer(step.model, config)
    trained = [p for p in step.model.parameters() if p.requires_grad]

    def run() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = task.total_loss(step.batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        task.train_loss.update(loss.detach(), torch.full_like(loss.detach(), 2))

    run()  # libraries are loaded, the optimizer makes its state
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_gpu_computes_what_a_cpu_does():
    step = Step(TINY, "cuda", dropout=0.0, noise=0.0)
    step.model.double().eval()
    inputs = step.batch["inputs"]
    inputs["complement"]["vectors"] = inputs["complement"]["vectors"].double()
    logits = step.model(inputs).logits
    there = {role: {key: v.cpu() for key, v in rows.items()} for role, rows in inputs.items()}
    torch.testing.assert_close(step.model.cpu()(there).logits, logits.cpu(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("precision", ["auto", "32-true"])
def test_the_quickstart_trains_there(precision, tmp_path, capsys):
    arguments = ["--baselines", "null", "--output", str(tmp_path), "--trainer.max_epochs", "1"]
    more = ["--trainer.precision", precision, "--trainer.accelerator", "gpu"]
    assert main(["fit", "--config", "configs/quickstart.yaml", *arguments, *more]) == 0
