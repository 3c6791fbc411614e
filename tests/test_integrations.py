"""The adaptors without their packages: what is missing is told, and nothing else is imported."""

from __future__ import annotations

import sys

import pytest

import tvlars_probe


@pytest.mark.parametrize(("name", "package"), [("TrainerProbe", "transformers"), ("LightningProbe", "lightning")])
def test_an_adaptor_without_its_package_says_what_to_install(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, one, None)
    monkeypatch.delitem(sys.modules, f"tvlars_probe.integrations.{package}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"{name} needs the package {package}: pip install 'tvlars-probe\["):
        getattr(tvlars_probe.integrations, name)
    assert name in dir(tvlars_probe.integrations)
    with pytest.raises(AttributeError, match="no attribute 'KerasProbe'"):
        _ = tvlars_probe.integrations.KerasProbe
