"""The figures of the papers and of the reference library."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from everydream.diffusion.noise import gaussian, training_noise
from everydream.diffusion.objective import Epsilon, VPrediction
from everydream.diffusion.schedule import NoiseSchedule, make_schedule
from everydream.diffusion.timesteps import uniform_timesteps
from everydream.diffusion.weighting import min_snr_weights

# t: alpha-bar, SNR, min-SNR-5 for epsilon, min-SNR-5 for v
TABLE = {
    0: (0.99915000, 1175.4706, 0.004254, 0.004250),
    1: (0.99829603, 585.86405, 0.008534, 0.008520),
    10: (0.99043131, 103.5075, 0.048306, 0.047843),
    100: (0.89422348, 8.4538937, 0.591443, 0.528883),
    250: (0.67379263, 2.0655346, 1.0, 0.673793),
    499: (0.27766965, 0.38440812, 1.0, 0.277670),
    750: (0.05616985, 0.05951267, 1.0, 0.056170),
    900: (0.01415114, 0.01435427, 1.0, 0.014151),
    999: (0.00466010, 0.00468192, 1.0, 0.004660),
}


@pytest.mark.parametrize("t", TABLE)
def test_schedule_snr_and_min_snr_agree_with_the_table(t: int) -> None:
    alpha_bar, snr, weight_eps, weight_v = TABLE[t]
    schedule, t_B = make_schedule(), torch.tensor([t])
    assert float(schedule.alphas_cumprod_T[t]) == pytest.approx(alpha_bar, abs=5e-9)
    assert float(schedule.snr(t_B)) == pytest.approx(snr, rel=1e-6)
    assert float(min_snr_weights(schedule.snr(t_B), 5.0, "epsilon")) == pytest.approx(weight_eps, abs=5e-7)
    assert float(min_snr_weights(schedule.snr(t_B), 5.0, "v")) == pytest.approx(weight_v, abs=5e-7)


def test_mean_weights_over_all_timesteps() -> None:
    snr = make_schedule().snr(torch.arange(1000))
    assert float(min_snr_weights(snr, 5.0, "epsilon").mean()) == pytest.approx(0.9166, abs=5e-5)
    assert float(min_snr_weights(snr, 5.0, "v").mean()) == pytest.approx(0.2943, abs=5e-5)
    assert int((snr >= 5).sum()) in (146, 147)  # SNR = 5 at t of about 146
    assert int((snr >= 1).sum()) in (354, 355)


def test_min_snr_of_a_zero_terminal_schedule_is_finite_in_both_forms() -> None:
    """Defect 9: elsewhere 0/0 at the last timestep."""
    schedule = NoiseSchedule(torch.tensor([0.99, 0.5, 0.0], dtype=torch.float64))
    snr = schedule.snr(torch.arange(3))
    assert min_snr_weights(snr, 5.0, "epsilon")[2] == 1.0
    assert min_snr_weights(snr, 5.0, "v")[2] == 0.0


def test_min_snr_for_v_is_not_the_epsilon_form() -> None:
    """Defect 8."""
    snr = torch.tensor([0.5])
    assert float(min_snr_weights(snr, 5.0, "v")) == pytest.approx(0.5 / 1.5)
    assert float(min_snr_weights(snr, 5.0, "epsilon")) == 1.0


@pytest.mark.parametrize(("objective", "kind"), [(Epsilon, "epsilon"), (VPrediction, "v_prediction")])
def test_noising_and_targets_agree_with_diffusers(objective: type[Epsilon], kind: str) -> None:
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)
    ours = objective(make_schedule())
    torch.manual_seed(0)
    x0, eps = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    t_B = torch.tensor([0, 1, 400, 800, 999])
    x_t = ours.noise(x0, t_B, eps)
    torch.testing.assert_close(x_t, reference.add_noise(x0, eps, t_B), atol=1e-6, rtol=1e-5)
    expected = eps if kind == "epsilon" else reference.get_velocity(x0, eps, t_B)
    torch.testing.assert_close(ours.target(x0, t_B, eps), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(compute_snr(reference, t_B).double(), ours.schedule.snr(t_B), rtol=1e-4, atol=0)
    exact = objective(make_schedule())
    recovered = exact.to_x0(x_t.double(), t_B, exact.target(x0.double(), t_B, eps.double()))
    torch.testing.assert_close(recovered, x0.double(), atol=2e-5, rtol=0)


def test_an_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="scaled_linear, linear"):
        make_schedule("cosine")


def test_noise_depends_on_the_image_and_not_on_its_batch() -> None:
    together = training_noise([11, 12, 13], (4, 8, 8), offset=0.1)
    alone = training_noise([12], (4, 8, 8), offset=0.1)
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


def test_offset_noise_moves_whole_channels() -> None:
    """Defect 3: each setting changes the draw."""
    plain, moved = training_noise([5], (4, 8, 8)), training_noise([5], (4, 8, 8), offset=0.1)
    shift = moved - plain
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6, rtol=0)
    torch.testing.assert_close(shift[:, :, :1, :1], 0.1 * gaussian([5], "offset_noise", (4, 1, 1)), atol=1e-6, rtol=0)


def test_timesteps_cover_the_range_evenly() -> None:
    t = uniform_timesteps(range(20_000), 1000)
    assert t.min() >= 0 and t.max() <= 999
    counts = torch.bincount(t // 100, minlength=10)
    assert counts.min() > 1850 and counts.max() < 2150
