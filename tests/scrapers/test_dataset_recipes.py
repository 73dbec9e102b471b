"""The recipes that come with the project."""

import re
from typing import Any

import pytest
import yaml
from conftest import ROOT

from scrapers.filters import compile_filters, needs_of
from scrapers.names import name_of
from scrapers.settings import ScrapeSettings
from scrapers.sources import SOURCES
from scrapers.types import Reason, Row

RECIPES = sorted((ROOT / "datasets").glob("*.yaml"))
IDS = [path.stem for path in RECIPES]


def read(path: Any) -> ScrapeSettings:
    return ScrapeSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_they_are_all_here() -> None:
    assert {"laion_aesthetic", "relaion_research_safe", "coyo", "datacomp", "ffhq"} <= set(IDS)


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_a_recipe_is_valid_and_says_how_to_run_it(path: Any) -> None:
    settings = read(path)
    assert settings.source.kind in SOURCES
    compile_filters(settings.filters)
    comment = path.read_text(encoding="utf-8").partition("\nsource:")[0]
    assert f"everydream scrape datasets/{path.name} --limit " in comment and "--out ground_truth/" in comment
    assert re.search(r"CC BY|Apache", comment)
    assert (settings.filters.min_width, settings.filters.min_height) == (512, 512)
    assert settings.fetch.robots and settings.fetch.opt_out and settings.fetch.allow_private == []


def test_faces_share_one_caption_that_makes_a_whole_name() -> None:
    text = read(ROOT / "datasets/ffhq.yaml").captions.text
    assert text == "close up photo of a person" and name_of(text).is_whole


@pytest.mark.parametrize("name", ["laion_aesthetic", "relaion_research_safe", "coyo", "datacomp"])
def test_what_recipes_for_the_web_take(name: str) -> None:
    settings = read(ROOT / f"datasets/{name}.yaml")
    refuse = compile_filters(settings.filters)
    good = {"width": 600, "height": 512, "aesthetic": 7.5, "similarity": 0.35, "unsafe": 0.01, "watermark": 0.1}

    def judge(url: str = "https://example.org/a.jpg", **changes: Any) -> Reason | None:
        verdict = refuse(Row(0, "", url, **{**good, **changes}), "a barn")
        return verdict and verdict.reason

    assert judge() is None
    assert judge("https://image.shutterstock.com/a.jpg") is Reason.DOMAIN
    assert judge(height=511) is Reason.TOO_SMALL
    assert judge(width=2000) is Reason.ASPECT
    assert judge(unsafe=0.2) is (None if name == "datacomp" else Reason.UNSAFE)
    assert "caption" in needs_of(settings).required
