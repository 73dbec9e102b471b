"""The page of memory levels: its ways are valid settings, and its table says what was measured."""

from conftest import ROOT

from demo.board import with_table
from demo.memory import CONFIG, END, PAGE, START, WAYS, Result, table
from demo.score import Scoreboard, Shares
from everydream.config import load_config
from everydream.training.memory import LEVELS, resolved


def test_every_level_and_both_roundings_are_measured() -> None:
    configs = {name: load_config(ROOT / CONFIG, list(overrides)) for name, overrides in WAYS.items()}
    assert {config.memory.level for config in configs.values()} == set(LEVELS)
    uses = [resolved(config.memory, config.train, config.optimizer) for config in configs.values()]
    assert {use.rounding for use in uses if use.weights == "bf16"} == {"stochastic", "nearest"}


def test_the_table_stands_in_the_page() -> None:
    new, old = Shares(48, 1.0, 1.0, 1.0, 0.98), Shares(90, 1.0, 1.0, 1.0, 0.5)
    text = table({"low": Result(Scoreboard(new, old), 219.6, 3.93)})
    assert text.splitlines()[-1] == "| low | 98 % | 50 % | 220 | 3.9 |"
    assert text in with_table((ROOT / PAGE).read_text(encoding="utf-8"), text, START, END)
