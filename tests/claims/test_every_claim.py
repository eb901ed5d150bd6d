"""Every claim's code runs through in seconds, and its rule can judge what it measures."""

from pathlib import Path

import pytest

from retinue.claims.harness import Figures, claim_module, claim_slugs, run_claim


@pytest.mark.parametrize("slug", claim_slugs())
def test_the_smoke_run_walks_through_and_can_be_judged(slug: str, tmp_path: Path) -> None:
    module = claim_module(slug)
    assert module.RULE
    assert module.__doc__.startswith(f"{slug}: ")
    result = run_claim(slug, "smoke", seeds=[0, 1], folder=tmp_path)
    assert result.verdict == "smoke run, no verdict", result.reason
    assert (tmp_path / f"{slug}.png").stat().st_size > 1000
    figures = Figures([{name: values[i] for name, values in result.figures.items()} for i in range(2)])
    assert isinstance(module.shown(figures), bool)
    if hasattr(module, "parts"):
        assert module.shown(figures) == all(module.parts(figures).values())
