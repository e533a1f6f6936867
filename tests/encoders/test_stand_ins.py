"""Every encoder does its part where a sample lacks a field: blanks, stand-in tokens, fewer rows."""

from __future__ import annotations

import pytest
import torch
from test_contract import CASES, EACH, _plugins_importable, tokenizer  # noqa: F401  # fixtures

from fusionkit.data.loading import _collate
from fusionkit.data.missing import blank_of
from fusionkit.data.values import RoleInput
from fusionkit.encoders.base import MainEncoder
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion
from fusionkit.transfer.frozen import Frozen


class Alone(Fusion):
    @property
    def out_dim(self) -> int:
        return self.main.out_dim

    def forward(self, inputs):
        raise NotImplementedError


def inputs_of(encoder, samples, present, blank=None):
    read = encoder.preprocessor(train=False)
    role = RoleInput("role", "field", read, may_lack=True, blank=blank)
    rows = [read(raw) if there else None for raw, there in zip(samples, present, strict=True)]
    return _collate(role, rows)


@pytest.mark.parametrize(("name", "variant"), EACH)
def test_a_row_that_lacks_the_field_is_the_same_in_any_batch(name, variant, tokenizer):  # noqa: F811
    case = CASES[name][variant](tokenizer)
    encoder, samples = case.make(), case.samples[:3]
    tolerance = {"rtol": 1e-3, "atol": 1e-4}
    some, whole = (True, False, True), (True, True, True)

    # As a complement: its rows alone, tokens and masks of the whole batch.
    fusion = Alone(Frozen(encoder), [Frozen(encoder)]).eval()
    fusion.allow_missing(["main", "complement"])
    with torch.no_grad():
        seen = fusion.see({"complement": inputs_of(encoder, samples, some)})["complement"]
        plain = fusion.see({"complement": inputs_of(encoder, samples, whole)})["complement"]
    torch.testing.assert_close(seen.pooled[[0, 2]], plain.pooled[[0, 2]], **tolerance)
    assert torch.equal(seen.pooled[1], fusion.stand_ins["complement"])
    if seen.tokens is not None:
        assert seen.keep[1].sum() == 1
        assert torch.equal(seen.tokens[1, 0], fusion.stand_ins["complement"])
    if not isinstance(encoder, MainEncoder):
        return

    # As main encoder: a blank is embedded, then replaced.
    try:
        blank = blank_of(encoder.modality)
    except ConfigError:
        assert encoder.modality in ("table", "vector", "other")
        return
    with torch.no_grad():
        batch = fusion.run_main({"main": inputs_of(encoder, samples, some, blank)}).pooled
        plain = fusion.run_main({"main": inputs_of(encoder, samples, whole, blank)}).pooled
        one = fusion.run_main({"main": inputs_of(encoder, samples[1:2], (False,), blank)}).pooled
    torch.testing.assert_close(batch[[0, 2]], plain[[0, 2]], **tolerance)
    torch.testing.assert_close(batch[1:2], one, **tolerance)
    assert torch.isfinite(batch).all()
    assert not torch.allclose(batch[1], plain[1], **tolerance)
