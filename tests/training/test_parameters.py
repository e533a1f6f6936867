from __future__ import annotations

import pytest
from tiny import TinyComplement, TinyMain

from fusionkit.fusion.conditional_prompt import ConditionalPrompt
from fusionkit.fusion.model import FusionModel
from fusionkit.training.parameters import PartCount, count_parameters
from fusionkit.transfer.adapter import Adapter
from fusionkit.transfer.frozen import Frozen
from fusionkit.transfer.lora import Lora
from fusionkit.transfer.prompt import Prompt

BLOCK = 16 + 8 * 24 + 24 + 8 * 8 + 8 + 16  # norm, qkv, out, batch norm


@pytest.mark.parametrize(
    ("mode", "part", "added"),
    [
        (lambda encoder: Lora(encoder, rank=2), "complement lora", 2 * 2 * ((8 + 24) + (8 + 8))),
        (lambda encoder: Adapter(encoder, dim=3), "complement adapters", 2 * (8 * 3 * 2 + 3 + 8)),
        (lambda encoder: Prompt(encoder, length=5), "complement prompts", 2 * 5 * 8),
    ],
)
def test_what_a_mode_adds_is_a_part_of_its_own(mode, part, added):
    fusion = ConditionalPrompt(Frozen(TinyMain()), [mode(TinyMain())], experts=2)
    counts = {count.part: count for count in count_parameters(FusionModel(fusion, 2))}
    assert counts["complement"] == PartCount("complement", 0, 2 * BLOCK)
    assert counts[part] == PartCount(part, added, added)


def test_updates_of_an_encoder_without_layers_are_counted_too():
    fusion = ConditionalPrompt(Frozen(TinyMain()), [Lora(TinyComplement(), rank=2)], experts=2)
    counts = {count.part: count for count in count_parameters(FusionModel(fusion, 2))}
    assert counts["complement lora"].trained == 2 * (6 + 5)
    assert counts["complement"].trained == 0
