"""The ledger finds the images that do not fit, whatever noise levels they got; alarms come once, by rule."""

import math

import numpy as np
import pytest
import torch

from everydream.training.alarms import ADVICE, Alarms, window_of
from everydream.training.ledger import Entry, Ledger


def usual_loss(level: float) -> float:
    """As of an epsilon model: a hundred times larger where there is little noise."""
    return float(0.5 * math.exp(-4.6 * level))


def filled(factors: dict[str, float], visits: int, seed: int = 0, falling: bool = False) -> Ledger:
    """Return a ledger of images whose losses are `factors` times the usual, at random levels, with 20 % scatter."""
    rng = np.random.default_rng(seed)
    keys = list(factors)
    ledger = Ledger(keys, np.zeros(len(keys), np.int16))
    for visit in range(visits):
        for start in range(0, len(keys), 4):
            part = keys[start : start + 4]
            levels = rng.uniform(0, 1, len(part)).tolist()
            learned = math.exp(-visit / 10) if falling else 1.0
            losses = [
                usual_loss(level) * factors[key] * learned * float(rng.lognormal(0, 0.2))
                for key, level in zip(part, levels, strict=True)
            ]
            ledger.add(range(start, start + len(part)), levels, losses)
    return ledger


def entries_of(ledger: Ledger) -> list[Entry]:
    """Return what is said of every image, the largest excess first, after a look at the other order."""
    high, fallen = ledger.standing_out(len(ledger.keys))
    assert sorted(high, key=lambda entry: -entry.fallen) == fallen
    assert ledger.standing_out(2) == (high[:2], fallen[:2])
    return high


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("falling", [False, True])
def test_an_image_that_does_not_fit_comes_first(seed: int, falling: bool) -> None:
    """Its loss is a quarter above the others', far less than what the noise level does."""
    factors = {f"image {number}": 1.0 for number in range(60)} | {"odd": 1.3}
    entries = entries_of(filled(factors, 12, seed, falling))
    assert entries[0].key == "odd" and 0.1 < entries[0].excess < 0.4
    assert entries[0].visits == 12 and len(entries) == 61
    assert sorted((entry.excess for entry in entries), reverse=True) == [entry.excess for entry in entries]


def test_one_that_is_learned_by_heart_has_fallen_furthest() -> None:
    rng = np.random.default_rng(1)
    keys = [f"image {number}" for number in range(30)]
    ledger = Ledger(keys, np.zeros(30, np.int16))
    for visit in range(30):
        for row, key in enumerate(keys):
            level = float(rng.uniform(0, 1))
            learned = 0.9**visit if key == "image 7" else 0.99**visit
            ledger.add([row], [level], [usual_loss(level) * learned])
    found = max(entries_of(ledger), key=lambda entry: entry.fallen)
    assert found.key == "image 7" and found.fallen > 0.5


def test_a_new_subject_does_not_stand_out_as_a_whole() -> None:
    """Images of one source lose twice as much as those of the other: only the odd one of each is told of."""
    rng = np.random.default_rng(3)
    keys = [f"new/{n}" for n in range(20)] + [f"known/{n}" for n in range(20)]
    ledger = Ledger(keys, np.repeat([0, 1], 20).astype(np.int16))
    for _ in range(15):
        for key in rng.permutation(keys).tolist():
            level = float(rng.uniform(0, 1))
            factor = (2.0 if key.startswith("new") else 1.0) * (1.5 if key.endswith("/7") else 1.0)
            ledger.add([keys.index(key)], [level], [usual_loss(level) * factor * float(rng.lognormal(0, 0.1))])
    entries = entries_of(ledger)
    assert {entry.key for entry in entries[:2]} == {"new/7", "known/7"}
    assert all(entry.excess < 0.2 for entry in entries[2:])


def test_what_was_seen_is_counted_by_source() -> None:
    ledger = Ledger(["a/1", "a/2", "b/1"], np.array([0, 0, 1], np.int16))
    ledger.add([0, 2, 0], [0.5, 0.5, 0.1], [1.0, 1.0, 1.0])
    assert ledger.seen(["a", "b", "none"]) == {"a": 2, "b": 1, "none": 0}
    assert entries_of(ledger) == [], "nothing is known yet of what is usual"


def test_the_distance_from_the_start_is_at_like_noise() -> None:
    rng = np.random.default_rng(0)
    ledger = Ledger(["x"], np.zeros(1, np.int16))
    found = []
    for number in range(800):
        level = float(rng.uniform(0, 1))
        found.append(ledger.add([0], [level], [usual_loss(level) * (1.0 if number < 400 else 0.5)]))
    assert found[0] is None
    assert np.mean([value for value in found[300:400] if value is not None]) == pytest.approx(0, abs=0.05)
    assert np.mean([value for value in found[500:] if value is not None]) == pytest.approx(math.log(0.5), abs=0.05)


def test_a_ledger_goes_on_where_it_was_even_if_images_came_and_went() -> None:
    factors = {f"image {number}": 1.0 + number / 20 for number in range(10)}
    ledger = filled(factors, 12)
    same = Ledger(list(factors), np.zeros(10, np.int16))
    same.load_state_dict(ledger.state_dict(), list(factors))
    assert entries_of(same) == entries_of(ledger)
    assert all(torch.equal(value, ledger.state_dict()[name]) for name, value in same.state_dict().items())
    same.load_state_dict(ledger.state_dict(), [*factors, "only measured"])
    with_measured = Ledger([*factors, "only measured"], np.zeros(11, np.int16))
    with_measured.load_state_dict(ledger.state_dict(), [*factors, "only measured"])
    assert entries_of(with_measured) == entries_of(ledger), "one that was held out then, and trains now"
    others = ["new", *[f"image {number}" for number in range(9, 0, -1)]]
    changed = Ledger(others, np.zeros(10, np.int16))
    changed.load_state_dict(ledger.state_dict(), list(factors))
    visits = {entry.key: entry.visits for entry in entries_of(changed)}
    assert visits == {f"image {number}": 12 for number in range(1, 10)}


def ring(alarms: Alarms, distances: list[float], norm: float = 1.0, first: int = 1) -> list[str]:
    """Return the alarms that these steps set off, each with its step."""
    found = []
    for step, distance in enumerate(distances, first):
        found += [f"{name} at {step}" for name in alarms.step(step, distance, norm, True)]
    return found


def scattered(mean: float, num: int, seed: int = 0) -> list[float]:
    return (mean + np.random.default_rng(seed).normal(0, 0.1, num)).tolist()


def test_the_three_rules_of_the_loss() -> None:
    assert ring(Alarms(10), scattered(0, 200)) == []
    assert ring(Alarms(10), [math.log(1.6)] * 30) == ["diverging at 10"], "once"
    assert ring(Alarms(10), [math.log(1.45)] * 30) == []
    assert ring(Alarms(10), [math.log(0.09)] * 30) == ["collapsing at 10"]
    learned = [*scattered(0, 50), *scattered(-0.3, 50, 1)]
    assert ring(Alarms(10), [*learned, *scattered(-0.1, 10, 2)]) == [], "one window is none"
    assert ring(Alarms(10), [*learned, *scattered(-0.1, 40, 2)]) == ["turned upwards at 120"]
    assert ring(Alarms(10), [*learned, *scattered(-0.28, 100, 2)]) == [], "within the scatter"


def test_bad_numbers_dead_gradients_and_a_fast_text_encoder() -> None:
    alarms = Alarms(10)
    assert alarms.step(1, None, None, False) == {"not finite": 1.0} and alarms.step(2, None, None, False) == {}
    assert ring(alarms, [0.0] * 9, norm=0.0) == [] and ring(alarms, [0.0], norm=1.0) == []
    assert ring(alarms, [0.0] * 12, norm=0.0) == ["dead gradients at 10"]
    assert alarms.moved(20, {"unet": 0.01, "text_encoder": 0.02}, "unet") == {}
    assert alarms.moved(30, {"unet": 0.01, "text_encoder": 0.05}, "unet") == {"text encoder too fast": 5.0}
    assert alarms.moved(40, {"unet": 0.01, "text_encoder": 0.05}, "unet") == {}
    assert alarms.fired == {"not finite": 1, "dead gradients": 10, "text encoder too fast": 30}
    assert Alarms(10).moved(1, {"unet": 1e-6, "text_encoder": 1e-5}, "unet") == {}, "nothing has moved"
    assert set(ADVICE) >= set(alarms.fired) and all(text.format(2.0) for text in ADVICE.values())


def test_alarms_go_on_where_they_were() -> None:
    distances = [*scattered(0, 55), *scattered(-0.3, 50, 1), *scattered(-0.1, 60, 2)]
    straight = Alarms(10)
    expected = ring(straight, distances)
    stopped = Alarms(10)
    before = ring(stopped, distances[:117])
    resumed = Alarms(10)
    resumed.load_state_dict(stopped.state_dict(117))
    assert before + ring(resumed, distances[117:], first=118) == expected == ["turned upwards at 130"]
    assert resumed.state_dict(165) == straight.state_dict(165)
    assert resumed.state_dict(120)["fired"] == {}, "of a step that is taken back, nothing is remembered"
    assert [window_of(total) for total in (50, 1000, 100_000)] == [10, 50, 200]
