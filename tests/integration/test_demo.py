"""The project's regression test of learning, and not only of loss: the demo in a short form."""

from pathlib import Path

from conftest import ROOT, run_cli

from demo.run import export_of, pictures
from demo.score import Scoreboard, exam, score


def taught(config: str, epochs: int, runs: Path) -> Scoreboard:
    """Train as a user would, and judge the pictures of the export."""
    run_cli(
        "train", "--config", ROOT / "configs" / config, f"runs_dir={runs}", f"train.epochs={epochs}",
        "samples.every_steps=null", "trackers=[]", "checkpoints.every_steps=null", "checkpoints.every_epochs=null",
    )  # fmt: skip
    (run,) = runs.iterdir()
    return score(pictures(export_of(run)), exam()[0])


def test_before_the_model_knows_the_old_shapes_and_not_the_new_one() -> None:
    board = score(pictures(ROOT / "demo" / "model"), exam()[0])
    assert board.new.all_three <= 0.05
    assert board.old.all_three >= 0.95


def test_with_ground_truth_it_learns_the_new_and_keeps_the_old(tmp_path: Path) -> None:
    board = taught("demo.yaml", 6, tmp_path / "runs")
    assert board.new.all_three >= 0.90
    assert board.old.all_three >= 0.93


def test_without_ground_truth_it_forgets(tmp_path: Path) -> None:
    board = taught("demo_forgetting.yaml", 4, tmp_path / "runs")
    assert board.new.all_three >= 0.90
    assert board.old.all_three <= 0.60


def test_the_judge_is_not_fooled_by_the_wrong_pictures() -> None:
    """Pictures of the right things in the wrong order score as chance would."""
    expected, _ = exam()
    images = pictures(ROOT / "demo" / "model")
    assert score(images[::-1], expected).old.all_three < 0.2
