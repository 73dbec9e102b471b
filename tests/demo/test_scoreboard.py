"""The scoreboard's table, page and plot, from given numbers, and the runs that it compares."""

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from demo.scoreboard import END, PAGE, SHARES, START, STEPS, Result, overrides, plot, table, with_table
from everydream.config import load_config
from everydream.plan import plan_run


def result(share: float, known: float, change: float, steps: int = 336) -> Result:
    return Result(share, steps, round(steps * 16 * (1 - share)), 0.98, known, 0.05, change, 0.004)


RESULTS = [result(0.0, 0.0, 0.3), result(0.1, 0.71, 0.05), result(0.25, 0.97, 0.0175), result(0.5, 1.0, 0.009)]
CONTROL = result(0.0, 0.01, 0.25, 168)


def test_the_table_has_a_row_for_each_run() -> None:
    rows = table((0.0, 1.0), RESULTS, CONTROL).splitlines()
    assert rows[2:] == [
        "| before training | 0 | 0 | 0 % | 100 % | 0.0500 |",
        "| 0 % | 336 | 5,376 | 98 % | 0 % | +0.3000 ± 0.0040 (+600 %) |",
        "| 10 % | 336 | 4,838 | 98 % | 71 % | +0.0500 ± 0.0040 (+100 %) |",
        "| 25 % | 336 | 4,032 | 98 % | 97 % | +0.0175 ± 0.0040 (+35 %) |",
        "| 50 % | 336 | 2,688 | 98 % | 100 % | +0.0090 ± 0.0040 (+18 %) |",
        "| 0 %, control | 168 | 2,688 | 98 % | 1 % | +0.2500 ± 0.0040 (+500 %) |",
    ]
    assert len({row.count("|") for row in rows}) == 1


def test_the_page_is_changed_between_its_markers_only() -> None:
    page = f"before\n{START}\n\nold\n\n{END}\nafter\n"
    assert with_table(page, "new") == f"before\n{START}\n\nnew\n\n{END}\nafter\n"
    assert with_table(with_table(page, "new"), "old") == page
    with pytest.raises(SystemExit, match="no place for the table"):
        with_table("nothing here", "new")
    written = (ROOT / PAGE).read_text(encoding="utf-8")
    rows = written.partition(START)[2].partition(END)[0].strip().splitlines()
    assert len(rows) == 2 + 1 + len(SHARES) + 1, "the page in the repository holds a whole table"


def test_the_plot_shows_every_run(tmp_path: Path) -> None:
    plot(RESULTS, CONTROL, tmp_path / "a.png")
    changed = [*RESULTS[:1], result(0.1, 0.2, 0.05), *RESULTS[2:]]
    plot(changed, CONTROL, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as first, Image.open(tmp_path / "b.png") as second:
        assert first.size == second.size and first.width >= 1200
        pixels, others = np.asarray(first.convert("RGB")), np.asarray(second.convert("RGB"))
    assert (pixels[0] == 255).all() and (pixels[:, -1] == 255).all(), "on a white card, whatever the page's colour"
    half = pixels.shape[1] // 2
    assert (pixels[:, :half] != others[:, :half]).any() and (pixels[:, half:] == others[:, half:]).all()


@pytest.mark.parametrize("share", SHARES)
def test_every_run_has_one_budget_and_measures_the_same_images(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    planned = plan_run(load_config(Path("configs/demo.yaml"), overrides(share, STEPS, tmp_path)))
    none = plan_run(load_config(Path("configs/demo.yaml"), overrides(0.0, STEPS, tmp_path)))
    assert planned.total_steps == STEPS and "preservation" in planned.watched
    measured = planned.watched["preservation"].identities
    assert measured == none.watched["preservation"].identities and len(measured) == 32
    draws = sum(planned.mix.counts(epoch) for epoch in range(7))
    truth = int(draws[planned.index.source_N == 1].sum())
    assert int(draws.sum()) == pytest.approx(7 * 768, abs=1) and truth == pytest.approx(share * 7 * 768, abs=1)
