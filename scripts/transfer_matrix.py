"""The share of its weights that each transfer mode trains of each encoder, as a Markdown table.

    python scripts/transfer_matrix.py               # all encoders, each with its default model
    python scripts/transfer_matrix.py bert timm_vit # some of them

Models are built without weights, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from fusionkit import registry
from fusionkit.errors import ConfigError, MissingExtraError
from fusionkit.transfer.base import Transfer

# What an encoder cannot be built without.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "table": {"numeric": ["a", "b", "c", "d"], "categorical": ["e", "f"]},
    "vector": {"dim": 512},
}

# Heading -> mode and arguments; frozen trains nothing, and fine_tune everything.
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "`prompt`": ("prompt", {}),
    "`prompt`, shallow": ("prompt", {"shallow": True}),
    "`prefix`": ("prefix", {}),
    "`lora`": ("lora", {}),
    "`adapter`": ("adapter", {}),
    "`bias_only`": ("bias_only", {}),
    "`norm_only`": ("norm_only", {}),
    "`fine_tune`, last layer": ("fine_tune", {"last_layers": 1}),
}


def transferred(encoder: str, mode: str, arguments: dict[str, Any]) -> Transfer:
    """An encoder with its default model under a mode, without weights."""
    with torch.device("meta"):
        made = registry.load("complement_encoder", encoder)(**ARGUMENTS.get(encoder, {}))
        transfer: Transfer = registry.load("transfer", mode)(made, **arguments)
    return transfer


def count(transfer: Transfer) -> tuple[int, int]:
    """Trained weights, and the encoder's own."""
    trained = sum(weight.numel() for weight in transfer.parameters() if weight.requires_grad)
    own = {n: w for n, w in transfer.encoder.named_parameters() if "lora_" not in n}
    return trained, sum(weight.numel() for weight in own.values())


def row(encoder: str) -> str:
    """One line of the table."""
    _, own = count(transferred(encoder, "frozen", {}))
    cells = [f"`{encoder}`", f"{own / 1e6:.1f} M"]
    for mode, arguments in MODES.values():
        try:
            trained, _ = count(transferred(encoder, mode, arguments))
        except ConfigError:  # it has no layers, no bias, ...
            cells.append("")
        else:
            cells.append(f"{100 * trained / own:.2g} %" if own else f"{trained:,} weights")
    return f"| {' | '.join(cells)} |"


def main(names: list[str]) -> None:
    """Print the table."""
    known = {**registry.entries("main_encoder"), **registry.entries("complement_encoder")}
    built_in = sorted(name for name, e in known.items() if e.distribution == "fusionkit")
    print(f"| encoder | weights | {' | '.join(MODES)} |")
    print(f"|---|{'---:|' * (1 + len(MODES))}")
    for name in names or built_in:
        try:
            print(row(name), flush=True)
        except MissingExtraError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="encoders; all built-in ones by default")
    main(parser.parse_args().names)
