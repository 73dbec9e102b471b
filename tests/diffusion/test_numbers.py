"""The figures of the papers and of the reference library."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr

from everydream.diffusion.loss import huber_c, image_losses, mean_per_image
from everydream.diffusion.noise import gaussian, perturbed, training_noise
from everydream.diffusion.objective import Epsilon, Flow, VPrediction
from everydream.diffusion.schedule import make_schedule, with_zero_terminal_snr
from everydream.diffusion.settings import LossSettings, TimestepSettings
from everydream.diffusion.timesteps import noise_levels, stratified_quantiles, uniform_quantiles
from everydream.diffusion.weighting import loss_weights, mean_weight, snr_weights
from everydream.seeding import derive

# t: alpha-bar, SNR, min-SNR-5 for epsilon, min-SNR-5 for v, debiased for epsilon, debiased for v
TABLE = {
    0: (0.99915000, 1175.4706, 0.004254, 0.004250, 0.031623, 0.031607),
    1: (0.99829603, 585.86405, 0.008534, 0.008520, 0.041314, 0.041279),
    10: (0.99043131, 103.5075, 0.048306, 0.047843, 0.098291, 0.097820),
    100: (0.89422348, 8.4538937, 0.591443, 0.528883, 0.343931, 0.325233),
    250: (0.67379263, 2.0655346, 1.0, 0.673793, 0.695799, 0.571146),
    499: (0.27766965, 0.38440812, 1.0, 0.277670, 1.612886, 0.849900),
    750: (0.05616985, 0.05951267, 1.0, 0.056170, 4.099164, 0.971509),
    900: (0.01415114, 0.01435427, 1.0, 0.014151, 8.346597, 0.992899),
    999: (0.00466010, 0.00468192, 1.0, 0.004660, 14.614641, 0.997667),
}
MIN_SNR = LossSettings(weighting="min_snr", normalize_weights=False)
DEBIASED = LossSettings(weighting="debiased", normalize_weights=False)
UNIFORM = TimestepSettings()


def flow(shift: float = 3.0) -> Flow:
    return Flow(lambda latent_hw: shift)


@pytest.mark.parametrize("t", TABLE)
def test_schedule_snr_and_weights_agree_with_the_table(t: int) -> None:
    alpha_bar, snr, *weights = TABLE[t]
    schedule, t_B = make_schedule(), torch.tensor([t])
    assert float(schedule.alphas_cumprod_T[t]) == pytest.approx(alpha_bar, abs=5e-9)
    assert float(schedule.snr(t_B)) == pytest.approx(snr, rel=1e-6)
    found = [snr_weights(schedule.snr(t_B), p, s) for s in (MIN_SNR, DEBIASED) for p in ("epsilon", "v")]
    for weight, expected in zip(found, weights, strict=True):
        assert float(weight) == pytest.approx(expected, abs=6e-7)


def test_mean_weights_over_all_timesteps() -> None:
    epsilon, v = Epsilon(make_schedule()), VPrediction(make_schedule())
    assert mean_weight(epsilon, MIN_SNR, UNIFORM, (64, 64)) == pytest.approx(0.9166, abs=5e-5)
    assert mean_weight(v, MIN_SNR, UNIFORM, (64, 64)) == pytest.approx(0.2943, abs=5e-5)
    assert mean_weight(epsilon, DEBIASED, UNIFORM, (64, 64)) == pytest.approx(3.0213, abs=5e-5)
    snr = epsilon.snr(torch.arange(1000))
    assert int((snr >= 5).sum()) in (146, 147)  # SNR = 5 at t of about 146
    assert int((snr >= 1).sum()) in (354, 355)


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "debiased", "p2"])
@pytest.mark.parametrize(
    "objective", [Epsilon(make_schedule()), VPrediction(make_schedule(zero_terminal=True)), flow()]
)
@pytest.mark.parametrize("law", [UNIFORM, TimestepSettings(law="logit_normal", mean=0.5, min=0.1)])
def test_normalised_weights_have_a_mean_of_one(weighting: str, objective: Epsilon, law: TimestepSettings) -> None:
    """Whatever the law draws, the weighting moves the emphasis and not the size of the loss."""
    settings = LossSettings(weighting=weighting)
    v = uniform_quantiles([derive(n, "draw") for n in range(4000)])
    t_B = objective.timesteps(noise_levels(v, law), (64, 64), None)
    weights = loss_weights(t_B, objective, settings, law, (64, 64))
    assert torch.isfinite(weights).all() and float(weights.std()) > 0.02
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.08)
    assert mean_weight(objective, settings, law, (64, 64)) != pytest.approx(1.0, abs=1e-3), (
        "there was much to divide by"
    )


def test_min_snr_of_a_zero_terminal_schedule_is_finite_in_both_forms() -> None:
    """Defect 9: elsewhere 0/0 at the last timestep."""
    snr = torch.tensor([99.0, 1.0, 0.0])
    assert float(snr_weights(snr, "epsilon", MIN_SNR)[2]) == pytest.approx(1.0, abs=1e-9)
    assert float(snr_weights(snr, "v", MIN_SNR)[2]) == pytest.approx(0.0, abs=1e-9)


def test_min_snr_for_v_is_not_the_epsilon_form() -> None:
    """Defect 8."""
    snr = torch.tensor([0.5])
    assert float(snr_weights(snr, "v", MIN_SNR)) == pytest.approx(0.5 / 1.5)
    assert float(snr_weights(snr, "epsilon", MIN_SNR)) == 1.0


def test_weights_put_the_same_emphasis_on_the_image_whatever_is_predicted() -> None:
    """A weighted loss in one prediction is the same loss in another, once both are errors of the image."""
    snr = torch.tensor([0.01, 0.7, 4.0, 90.0], dtype=torch.float64)
    per_x0 = {"epsilon": snr, "v": snr + 1, "flow": (1 + snr.sqrt()) ** 2}
    for weighting in ("min_snr", "soft_min_snr"):
        settings = LossSettings(weighting=weighting, normalize_weights=False)
        on_x0 = [snr_weights(snr, prediction, settings) * gain for prediction, gain in per_x0.items()]
        assert torch.allclose(on_x0[0], on_x0[1]) and torch.allclose(on_x0[0], on_x0[2])
    soft = snr_weights(snr, "epsilon", LossSettings(weighting="soft_min_snr", normalize_weights=False))
    torch.testing.assert_close(soft, 5 / (snr + 5))
    p2 = LossSettings(weighting="p2", gamma=0.5, normalize_weights=False)
    torch.testing.assert_close(snr_weights(snr, "epsilon", p2), (1 + snr) ** -0.5)
    torch.testing.assert_close(snr_weights(snr, "v", p2), (2 + snr) ** -0.5)


def test_the_zero_terminal_schedule_is_diffusers_own() -> None:
    plain, ours = make_schedule(), make_schedule(zero_terminal=True)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    torch.testing.assert_close(ours.alphas_cumprod_T, theirs, atol=1e-12, rtol=0)
    expected = {0: 0.99915, 1: 0.99823345, 100: 0.88676128, 250: 0.65245702, 500: 0.24101878, 750: 0.03279912, 999: 0.0}
    for t, alpha_bar in expected.items():
        assert float(ours.alphas_cumprod_T[t]) == pytest.approx(alpha_bar, abs=5e-9)
    assert torch.equal(with_zero_terminal_snr(plain).alphas_cumprod_T, ours.alphas_cumprod_T)
    x0, eps = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    last = torch.tensor([999])
    assert torch.equal(VPrediction(ours).noise(x0, last, eps), eps), "nothing of the image is left"
    assert torch.equal(VPrediction(ours).target(x0, last, eps), -x0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_agrees_with_diffusers(shift: float) -> None:
    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    u = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    ours = flow(shift)
    t_B = ours.timesteps(u, (64, 64))
    torch.testing.assert_close(t_B, reference.timesteps.double(), atol=1e-4, rtol=1e-6)
    torch.manual_seed(0)
    x0, eps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    some = reference.timesteps[[0, 400, 999]]
    x_t = ours.noise(x0, some, eps)
    torch.testing.assert_close(x_t, reference.scale_noise(x0, some, eps), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.to_x0(x_t, some, ours.target(x0, some, eps)), x0, atol=1e-5, rtol=0)
    sigma = some.double() / 1000
    torch.testing.assert_close(ours.snr(some), ((1 - sigma) / sigma) ** 2)
    assert float(ours.timesteps(torch.tensor([0.5]), (64, 64), 6.0)) == pytest.approx(1000 * 3 / 3.5)


@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", (0.1, 0.1, 0.1)),
    ("exponential", (1.0, 0.316228, 0.100231)),
    ("snr", (0.949710, 0.231284, 0.103691)),
])  # fmt: skip
def test_huber_schedules_agree_with_the_vectors(schedule: str, expected: tuple[float, ...]) -> None:
    settings = LossSettings(kind="huber", huber_schedule=schedule)
    found = huber_c(torch.tensor([0, 500, 999]), Epsilon(make_schedule()), settings)
    assert found.tolist() == pytest.approx(list(expected), abs=6e-7)


def test_huber_and_smooth_l1_turn_from_squares_to_absolute_errors() -> None:
    epsilon, t_B = Epsilon(make_schedule()), torch.tensor([500])
    for kind, scale in (("huber", 0.2), ("smooth_l1", 2.0)):
        settings = LossSettings(kind=kind, huber_schedule="constant")
        for d in (0.001, 0.3, 50.0):
            loss = image_losses(torch.full((1, 4, 2, 2), d), torch.zeros(1, 4, 2, 2), t_B, epsilon, settings)
            assert float(loss) == pytest.approx(scale * ((d * d + 0.01) ** 0.5 - 0.1), rel=1e-4)
    plain = LossSettings(kind="huber", huber_schedule="constant", huber_c=1e3)
    d = torch.randn(2, 4, 8, 8)
    found = image_losses(d, torch.zeros_like(d), torch.tensor([3, 700]), epsilon, plain)
    torch.testing.assert_close(found, d.square().flatten(1).mean(1), rtol=1e-4, atol=0)


def test_a_masked_loss_is_the_mean_over_the_mask() -> None:
    error = torch.arange(1.0, 17.0).view(1, 1, 4, 4).expand(2, 3, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, 0, :2] = 1.0
    assert mean_per_image(error, mask).tolist() == [1.5, 0.0], "of the mask's area; nothing of nothing is 0"
    assert float(mean_per_image(error, mask, 0.5)[0]) == pytest.approx((1 + 2 + 0.5 * (136 - 3)) / (2 + 0.5 * 14))
    assert torch.equal(mean_per_image(error, mask, 1.0), mean_per_image(error))
    assert torch.equal(mean_per_image(error, torch.ones(2, 1, 4, 4)), mean_per_image(error))


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


def test_noise_depends_on_the_image_and_not_on_its_batch() -> None:
    settings = LossSettings(offset_noise=0.1, offset_noise_random=True, pyramid_noise=0.4)
    together = training_noise([11, 12, 13], (4, 8, 8), settings)
    alone = training_noise([12], (4, 8, 8), settings)
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


def test_offset_noise_moves_whole_channels() -> None:
    """Defect 3: each setting changes the draw."""
    plain, moved = (training_noise([5], (4, 8, 8), LossSettings(offset_noise=s)) for s in (0.0, 0.1))
    shift = moved - plain
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6, rtol=0)
    torch.testing.assert_close(shift[:, :, :1, :1], 0.1 * gaussian([5], "offset_noise", (4, 1, 1)), atol=1e-6, rtol=0)
    some = training_noise([5, 6, 7], (4, 8, 8), LossSettings(offset_noise=0.1, offset_noise_random=True))
    strengths = (some - training_noise([5, 6, 7], (4, 8, 8), LossSettings()))[:, 0, 0, 0]
    full = 0.1 * gaussian([5, 6, 7], "offset_noise", (4, 1, 1))[:, 0, 0, 0]
    assert ((strengths / full > 0) & (strengths / full < 1)).all(), "each its own part of the strength"
    assert len({round(float(x), 4) for x in strengths / full}) == 3


def test_pyramid_noise_has_coarse_grain_and_a_standard_deviation_of_one() -> None:
    plain, coarse = (training_noise(range(40), (4, 16, 16), LossSettings(pyramid_noise=p)) for p in (None, 0.6))
    assert torch.allclose(coarse.flatten(1).std(1), torch.ones(40), atol=1e-5)
    neighbours = [(n[..., 1:] * n[..., :-1]).mean().item() for n in (plain, coarse)]
    assert abs(neighbours[0]) < 0.05 and neighbours[1] > 0.08, "neighbours have something in common"


def test_input_perturbation_adds_to_what_it_is_given() -> None:
    eps = gaussian([3, 4], "noise", (4, 8, 8))
    added = perturbed(eps, [3, 4], 0.1) - eps
    torch.testing.assert_close(added, 0.1 * gaussian([3, 4], "input_perturbation", (4, 8, 8)), atol=1e-6, rtol=0)
    assert perturbed(eps, [3, 4], 0.0) is eps


def test_timesteps_cover_the_range_evenly() -> None:
    t = Epsilon(make_schedule()).timesteps(uniform_quantiles(range(20_000)), (8, 8))
    assert t.min() >= 0 and t.max() <= 999
    counts = torch.bincount(t // 100, minlength=10)
    assert counts.min() > 1850 and counts.max() < 2150
    assert t[:500].tolist() == [derive(seed, "timestep") % 1000 for seed in range(500)]


def test_a_range_of_timesteps_is_kept_to_and_filled() -> None:
    v = uniform_quantiles(range(5000))
    for settings in (
        TimestepSettings(min=0.2, max=0.6),
        TimestepSettings(law="logit_normal", mean=1, min=0.2, max=0.6),
    ):
        t = Epsilon(make_schedule()).timesteps(noise_levels(v, settings), (8, 8))
        assert (int(t.min()), int(t.max())) == (200, 599)
    assert torch.equal(noise_levels(v, TimestepSettings()), v)


def test_the_logit_normal_law_is_the_papers() -> None:
    u = noise_levels(uniform_quantiles(range(20_000)), TimestepSettings(law="logit_normal", mean=-0.7, std=0.5))
    logits = torch.logit(u)
    assert float(logits.mean()) == pytest.approx(-0.7, abs=0.02) and float(logits.std()) == pytest.approx(0.5, abs=0.02)
    ends = noise_levels(torch.tensor([0.0, 1.0], dtype=torch.float64), TimestepSettings(law="logit_normal"))
    assert ends.tolist() == [0.0, 1.0]
    assert Epsilon(make_schedule()).timesteps(ends, (8, 8)).tolist() == [0, 999]


def test_stratified_levels_keep_the_law_and_spread_each_step() -> None:
    laws = TimestepSettings(law="logit_normal"), TimestepSettings(law="logit_normal", stratified=True)
    means: list[list[float]] = [[], []]
    for step in range(300):
        seeds = [derive(step, "draw", n) for n in range(8)]
        for number, v in enumerate((uniform_quantiles(seeds), stratified_quantiles(seeds, [(n, 8) for n in range(8)]))):
            means[number].append(float(noise_levels(v, laws[number]).mean()))
    plain, spread = (torch.tensor(m) for m in means)
    assert float(spread.mean()) == pytest.approx(0.5, abs=0.01) and float(plain.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(spread.std()) < 0.3 * float(plain.std())


def test_settings_without_effect_are_refused() -> None:
    for kind, values, message in (
        (LossSettings, {"huber_c": 0.2}, "huber_c has no effect with kind: mse"),
        (LossSettings, {"huber_schedule": "constant"}, "huber_schedule has no effect with kind: mse"),
        (LossSettings, {"gamma": 3.0}, "gamma has no effect with weighting: none"),
        (LossSettings, {"weighting": "debiased", "gamma": 3.0}, "gamma has no effect with weighting: debiased"),
        (LossSettings, {"normalize_weights": False}, "normalize_weights has no effect with weighting: none"),
        (LossSettings, {"offset_noise_random": True}, "offset_noise_random has no effect with offset_noise: 0"),
        (TimestepSettings, {"mean": 1.0}, "mean and std have no effect with law: uniform"),
        (TimestepSettings, {"min": 0.5, "max": 0.5}, "min is 0.5 and max 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**values)


def test_the_old_key_means_what_it_meant() -> None:
    assert LossSettings(min_snr_gamma=4.0) == LossSettings(weighting="min_snr", gamma=4.0, normalize_weights=False)
    assert LossSettings(min_snr_gamma=None) == LossSettings()


def test_an_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="scaled_linear, linear"):
        make_schedule("cosine")
