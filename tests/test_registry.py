"""Entry points are built in memory; nothing is installed."""

from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from fusionkit import registry
from fusionkit.encoders.base import ComplementEncoder
from fusionkit.errors import ConfigError, MissingExtraError, PluginError, UnknownNameError


class Good(ComplementEncoder):
    def __init__(self, dim: int = 3) -> None: ...


class Stars(ComplementEncoder):
    def __init__(self, *args: Any) -> None: ...


class Keywords(ComplementEncoder):
    def __init__(self, **kwargs: Any) -> None: ...


class Bare(ComplementEncoder):
    def __init__(self, dim=3) -> None: ...


class Old(ComplementEncoder):
    api_version: ClassVar[int] = 0

    def __init__(self) -> None: ...


class NotAnEncoder:
    def __init__(self) -> None: ...


class Point:
    """An entry point with a distribution, as installed ones have."""

    def __init__(self, name: str, value: str, dist: str = "acme") -> None:
        self.name, self.value = name, value
        self.dist = SimpleNamespace(name=dist, version="1.2", metadata={"Summary": "of acme"})


@pytest.fixture
def install(monkeypatch):
    def install(*points: Any, group: str = "fusionkit.complement_encoders") -> None:
        monkeypatch.setattr(
            registry, "_installed_entry_points", lambda asked: points if asked == group else ()
        )

    return install


def test_plugin_is_listed_with_its_distribution(install):
    install(Point("good", f"{__name__}:Good"))
    entry = registry.entries("complement_encoder")["good"]
    assert (entry.distribution, entry.version, entry.summary) == ("acme", "1.2", "of acme")
    assert registry.load("complement_encoder", "good") is Good


def test_entry_point_without_distribution_is_listed(install):
    install(EntryPoint("good", f"{__name__}:Good", "fusionkit.complement_encoders"))
    assert registry.entries("complement_encoder")["good"].distribution == "unknown"


def test_two_distributions_with_one_name_are_both_named(install):
    install(Point("x", f"{__name__}:Good"), Point("x", f"{__name__}:Old", "other"))
    with pytest.raises(PluginError, match=r"'x': acme 1\.2 .* and other 1\.2 .* Uninstall one"):
        registry.entries("complement_encoder")


def test_built_in_is_never_shadowed(install):
    install(Point("bow", f"{__name__}:Good"))
    with pytest.raises(PluginError, match=r"'bow': fusionkit .* and acme 1\.2"):
        registry.find("complement_encoder", "bow")


def test_broken_plugin_fails_only_its_own_use(install):
    install(Point("broken", "no_such_module:X"), Point("good", f"{__name__}:Good"))
    assert registry.load("complement_encoder", "good") is Good
    with pytest.raises(PluginError, match=r"'broken' of acme 1\.2 .* cannot be imported"):
        registry.load("complement_encoder", "broken")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NotAnEncoder", r"is not a subclass of fusionkit\.encoders\.base\.ComplementEncoder"),
        ("Stars", r"takes \*args"),
        ("Keywords", r"takes \*\*kwargs"),
        ("Bare", r"takes 'dim' without a type annotation"),
        ("Old", r"written for version 0 of the interfaces, this fusionkit has version 1"),
        ("Missing", r"cannot be imported: AttributeError"),
    ],
)
def test_class_that_configs_cannot_build_is_refused(install, name, message):
    install(Point("it", f"{__name__}:{name}"))
    with pytest.raises(PluginError, match=message):
        registry.load("complement_encoder", "it")


def test_unknown_name_suggests_close_ones():
    with pytest.raises(UnknownNameError, match=r"main encoder 'brt'\. Did you mean 'bert'"):
        registry.find("main_encoder", "brt")


def test_main_encoder_serves_as_complement():
    assert registry.find("complement_encoder", "bert").kind == "main_encoder"


def test_complement_as_main_says_why_not():
    with pytest.raises(ConfigError, match=r"'bow' has no layers to prompt.*Main encoders: .*bert"):
        registry.find("main_encoder", "bow")


def test_missing_library_names_the_extra():
    with pytest.raises(MissingExtraError, match=r"pip install 'fusionkit\[audio\]'"):
        registry.require("no_such_library.part", "audio")
