"""The documents say what is so."""

import re

import yaml
from conftest import ROOT

from everydream.config import RunConfig
from everydream.reference import reference, scrape_reference
from scrapers.settings import ScrapeSettings
from scrapers.types import Reason

DOCUMENTS = [ROOT / "README.md", ROOT / "datasets" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_configuration_reference_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_the_readmes_yaml_is_valid() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert RunConfig.model_validate(yaml.safe_load(block)).train.epochs == 2


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (document.parent / link).exists(), f"{document.name}: {link}"


def test_conformance_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)", text)
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_the_inner_paths_of_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:everydream|data|models|training|formats|diffusion|methods)/[\w/]+\.py)`", text):
        assert (ROOT / path).exists() or (ROOT / "everydream" / path).exists(), path


def test_no_machine_paths_or_hosts_in_what_is_published() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert not re.search(r"/work/|/root/|/home/\w|https?://(?!github\.com|arxiv|\.\.\.|example\.org)", text), (
            document.name
        )


def test_the_scrapers_page_explains_every_reason() -> None:
    text = (ROOT / "docs" / "scraping.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    explained = {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    for reason in Reason:
        _, status, again, *_ = explained[reason.value]
        assert status == reason.status and (again.strip() == "yes") == reason.can_still_pass, reason


def test_the_recipe_of_the_scrapers_page_is_valid() -> None:
    text = (ROOT / "docs" / "scraping.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert ScrapeSettings.model_validate(yaml.safe_load(block)).filters.with_any == ["dog", "puppy"]


def test_the_reference_of_recipes_is_the_generated_one() -> None:
    text = (ROOT / "docs" / "scraping_settings.md").read_text(encoding="utf-8")
    assert text == scrape_reference(ScrapeSettings), "run `make docs`"
