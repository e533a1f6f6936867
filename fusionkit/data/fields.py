"""Which field of a data set an encoder reads."""

from __future__ import annotations

from collections.abc import Mapping

from fusionkit.errors import ConfigError, suggest


def pick_field(fields: Mapping[str, str], modality: str, asked: str | None, who: str) -> str:
    """The field that an encoder reads.

    Args:
        fields: The data set's: modality by name.
        modality: The encoder's.
        asked: The field that the config names; None for the only one of this modality.
        who: Role and name, for messages: ``"complement 'bow'"``.

    Raises:
        ConfigError: No such field, one of another modality, or none or several to pick from.
    """
    setting = f"{who.partition(' ')[0]}_field"
    fitting = [name for name, kind in fields.items() if kind == modality]
    listed = f"{modality} fields: {', '.join(fitting) or 'none'}"
    if asked is None:
        if len(fitting) == 1:
            return fitting[0]
        everything = ", ".join(f"{name} ({kind})" for name, kind in fields.items())
        if not fitting:
            raise ConfigError(
                f"{who} reads {modality}, but the data has no such field; fields: {everything}. "
                f"Add a field of that modality, or take an encoder of another."
            )
        raise ConfigError(
            f"{who} reads {modality}, of which there are several; {listed}. Set {setting}."
        )
    if asked not in fields:
        raise ConfigError(
            f"{who}: there is no field {asked!r}.{suggest(asked, fields)} {listed}. Set {setting}."
        )
    if asked not in fitting:
        raise ConfigError(
            f"{who} reads {modality}, but field {asked!r} is {fields[asked]}; {listed}. "
            f"Set {setting}."
        )
    return asked
