"""FTTransformer against the paper's formulas; see cases_rows.py."""

from __future__ import annotations

import torch
from cases import shaken
from cases_rows import ft_transformer

from fusionkit.encoders.ft_transformer import FTTransformer


def inputs(numeric: int, categorical: int, rows: int = 6) -> dict[str, torch.Tensor]:
    return {
        "numbers": torch.randn(rows, numeric, dtype=torch.float64),
        "empty": torch.rand(rows, numeric) < 0.4,
        "categories": torch.randint(20 + categorical, (rows, categorical, 2)),
    }


def test_every_token_is_the_papers():
    net = shaken(FTTransformer(3, 2, buckets=20, dim=16, layers=3)).double().eval()
    net.scale.fit(iter(torch.randn(9, 3).double().numpy()[:, None] * 5 + 2))
    given = inputs(3, 2)
    assert given["empty"].any()
    with torch.no_grad():
        tokens = net(**given)
        expected = ft_transformer(net.state_dict(), given)
    assert tokens.shape == (6, 6, 16)
    torch.testing.assert_close(tokens, expected, rtol=1e-10, atol=1e-10)


def test_what_stands_in_an_empty_cell_does_not_matter():
    net = FTTransformer(3, 0, buckets=1, dim=8, layers=1).double().eval()
    given = inputs(3, 0)
    other = {**given, "numbers": torch.where(given["empty"], 1e9, given["numbers"])}
    assert torch.equal(net(**given), net(**other))


def test_dropout_is_on_in_training_only():
    net = FTTransformer(2, 1, buckets=8, dim=16, layers=1).double()
    given = inputs(2, 1)
    given["categories"] = given["categories"] % 8
    assert not torch.equal(net(**given), net(**given))
    net.eval()
    assert torch.equal(net(**given), net(**given))


def test_columns_of_one_kind_need_no_weights_for_the_other():
    assert FTTransformer(2, 0, buckets=1024, dim=8, layers=1).categories.weight.numel() == 0
    assert FTTransformer(0, 2, buckets=10, dim=8, layers=1).categories.weight.shape == (12, 8)
