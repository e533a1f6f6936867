"""What fusions ask of their encoders, checked when a model is built."""

from __future__ import annotations

from collections.abc import Sequence

from fusionkit.encoders.base import MainEncoder
from fusionkit.errors import ConfigError
from fusionkit.transfer.base import Transfer


def layered(transfer: Transfer, fusion: str) -> MainEncoder:
    """The encoder of ``transfer``, which has layers.

    Raises:
        ConfigError: It has none.
    """
    if not isinstance(transfer.encoder, MainEncoder):
        raise ConfigError(
            f"{fusion} works in the layers of an encoder, {type(transfer.encoder).__name__} has "
            f"none."
        )
    return transfer.encoder


def promptable(main: Transfer, fusion: str) -> MainEncoder:
    """The main encoder, whose layers are free to be prompted.

    Raises:
        ConfigError: It has no layers, or its transfer mode has prompts of its own.
    """
    encoder = layered(main, fusion)
    if not main.takes_prompts:
        raise ConfigError(
            f"main_transfer ({type(main).__name__}) has prompts of its own and takes no others; "
            f"{fusion} needs another mode, such as frozen or fine_tune."
        )
    return encoder


def extendable(main: Transfer, fusion: str, count: int) -> MainEncoder:
    """The main encoder, whose input takes ``count`` further tokens from now on.

    Raises:
        ConfigError: It takes none.
    """
    encoder = layered(main, fusion)
    if not encoder.takes_tokens:
        raise ConfigError(
            f"{fusion} adds tokens to the main encoder's input; this {type(encoder).__name__} "
            f"takes none (its tokens form windows, or have positions of their own in each layer). "
            f"Text encoders and plain Vision Transformers take them."
        )
    encoder.reserved += count
    return encoder


def interactive(transfer: Transfer, role: str, fusion: str) -> MainEncoder:
    """The encoder of ``transfer``, whose layers the fusion runs and queries itself.

    Raises:
        ConfigError: It has no layers, cannot be queried, or is more than its layers.
    """
    encoder = layered(transfer, fusion)
    if not transfer.plain:
        raise ConfigError(
            f"{fusion} runs the layers of the {role} encoder with prompts of its own, and would "
            f"pass by what {role}_transfer ({type(transfer).__name__}) has beside them (prompts, "
            f"adapters); take a mode that changes weights only, such as frozen, lora or fine_tune."
        )
    if not encoder.takes_queries:
        raise ConfigError(
            f"{fusion} lets prompts read the tokens of the {role} encoder in its layers; this "
            f"{type(encoder).__name__} does not allow it (its tokens form windows, or its layers "
            f"depend on positions or on what is padding). Text encoders and plain Vision "
            f"Transformers do."
        )
    return encoder


def complements_of(complements: Sequence[Transfer], fusion: str) -> Sequence[Transfer]:
    """The complements, of which there is one at least.

    Raises:
        ConfigError: There is none.
    """
    if not complements:
        raise ConfigError(f"{fusion} fuses the main encoder with a complement; give `complement`.")
    return complements


def only_complement(complements: Sequence[Transfer], fusion: str) -> Transfer:
    """The one complement.

    Raises:
        ConfigError: There is none, or more than one.
    """
    if len(complements_of(complements, fusion)) > 1:
        raise ConfigError(
            f"{fusion} is defined for one complement, given {len(complements)}; leave "
            f"more_complements out, or take a fusion for several, such as conditional_prompt."
        )
    return complements[0]
