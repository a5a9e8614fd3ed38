"""The degradation has the probabilities and the order of steps of method §9, and depends only on the generator."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from scipy.stats import kstest, uniform

from xpsr_jax.data.config import BICUBIC, MILD, XPSR
from xpsr_jax.data.degradation import SHAPES, Blur, Drawn, Noise, Stage, apply, degrade, draw
from xpsr_jax.data.jpeg import jpeg
from xpsr_jax.data.kernels import filter_image, sharpen
from xpsr_jax.data.resize import rescale, resize

COUNT = 6000


@pytest.fixture(scope="module")
def draws() -> list[Drawn]:
    rng = np.random.default_rng(2024)
    return [draw(XPSR, rng) for _ in range(COUNT)]


def check_frequency(hits, probability):
    """Within 3.9 standard errors. A correct sampler fails for one of 10,000 seeds, and the seed is fixed."""
    hits = np.asarray(hits, float)
    assert abs(hits.mean() - probability) <= 3.9 * np.sqrt(probability * (1 - probability) / len(hits))


def check_uniform(values, low, high):
    assert low <= min(values) and max(values) <= high
    assert kstest(values, uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("stage", "up", "down", "smallest", "largest"), [("first", 0.2, 0.7, 0.15, 1.5), ("second", 0.3, 0.4, 0.3, 1.2)]
)
def test_resizes(draws, stage, up, down, smallest, largest):
    scales = np.array([getattr(d, stage).scale for d in draws])
    check_frequency(scales > 1, up)
    check_frequency(scales < 1, down)
    check_uniform(scales[scales > 1], 1, largest)
    check_uniform(scales[scales < 1], smallest, 1)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resize_modes_are_equally_likely_and_independent(draws, mode):
    modes = [(d.first.resize_mode, d.second.resize_mode, d.final_mode) for d in draws]
    for position in range(3):
        check_frequency([m[position] == mode for m in modes], 1 / 3)
    check_frequency([m == (mode, mode, mode) for m in modes], 1 / 27)


@pytest.mark.parametrize(
    ("stage", "sigma", "scale"), [("first", (1, 30), (0.05, 3.0)), ("second", (1, 25), (0.05, 2.5))]
)
def test_noise(draws, stage, sigma, scale):
    noises = [getattr(d, stage).noise for d in draws]
    assert None not in noises
    check_frequency([n.kind == "gaussian" for n in noises], 0.5)
    check_frequency([n.gray for n in noises], 0.4)
    check_uniform([n.strength for n in noises if n.kind == "gaussian"], *sigma)
    check_uniform([n.strength for n in noises if n.kind == "poisson"], *scale)


def test_compression(draws):
    check_uniform([d.first.jpeg_quality for d in draws], 30, 95)
    check_uniform([d.second.jpeg_quality for d in draws], 30, 95)
    check_frequency([d.jpeg_last for d in draws], 0.5)


@pytest.mark.parametrize(("stage", "largest"), [("first", 3.0), ("second", 1.5)])
def test_blurs(draws, stage, largest):
    blurs = [b for d in draws if (b := getattr(d, stage).blur)]
    check_frequency([getattr(d, stage).blur is not None for d in draws], 1.0 if stage == "first" else 0.8)
    for size in range(7, 22, 2):
        check_frequency([b.size == size for b in blurs], 1 / 8)
    sincs = [b for b in blurs if b.shape == "sinc"]
    check_frequency([b.shape == "sinc" for b in blurs], 0.1)
    check_uniform([b.cutoff for b in sincs if b.size < 13], np.pi / 3, np.pi)
    check_uniform([b.cutoff for b in sincs if b.size >= 13], np.pi / 5, np.pi)

    gaussians = [b for b in blurs if b.shape != "sinc"]
    for shape, probability in zip(SHAPES, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True):
        check_frequency([b.shape == shape for b in gaussians], probability)
    check_uniform([b.sigma_x for b in gaussians], 0.2, largest)
    isotropic = [b for b in gaussians if not b.shape.endswith("aniso")]
    anisotropic = [b for b in gaussians if b.shape.endswith("aniso")]
    assert all(b.sigma_x == b.sigma_y and b.angle == 0 for b in isotropic)
    check_uniform([b.sigma_y for b in anisotropic], 0.2, largest)
    check_uniform([b.angle for b in anisotropic], -np.pi, np.pi)


@pytest.mark.parametrize(("family", "lowest", "highest"), [("generalized", 0.5, 4.0), ("plateau", 1.0, 2.0)])
def test_exponents(draws, family, lowest, highest):
    betas = np.array([d.first.blur.beta for d in draws if d.first.blur.shape.startswith(family)])
    check_frequency(betas > 1, 0.5)
    check_uniform(betas[betas > 1], 1, highest)
    if lowest == 1:
        assert (betas >= 1).all()
    else:
        check_uniform(betas[betas <= 1], lowest, 1)


def test_last_sinc_filter(draws):
    sincs = [d.sinc for d in draws if d.sinc]
    check_frequency([d.sinc is not None for d in draws], 0.8)
    check_uniform([s.cutoff for s in sincs], np.pi / 3, np.pi)
    for size in range(7, 22, 2):
        check_frequency([s.size == size for s in sincs], 1 / 8)


def test_drawn_choices_are_plain_data(draws):
    """Frozen and comparable, without NumPy types."""

    def leaves(value):
        if is_dataclass(value):
            return [leaf for f in fields(value) for leaf in leaves(getattr(value, f.name))]
        return [value]

    assert {type(leaf) for leaf in leaves(draws[0])} <= {str, int, float, bool, type(None)}
    assert draws[0] == draw(XPSR, np.random.default_rng(2024))
    with pytest.raises(AttributeError):
        draws[0].jpeg_last = True


DRAWN = Drawn(
    upscale=4,
    sharpen=True,
    sharpened_target=True,
    first=Stage(Blur("aniso", 9, sigma_x=1.2, sigma_y=0.5, angle=0.7), 0.43, "bilinear", None, 40.5),
    second=Stage(Blur("sinc", 7, cutoff=1.9), 1.13, "area", None, 62.25),
    sinc=Blur("sinc", 11, cutoff=2.1),
    final_mode="bicubic",
    jpeg_last=False,
)


@pytest.mark.parametrize("jpeg_last", [False, True])
def test_order_of_the_steps(photo, jpeg_last):
    """Compared with steps 1 to 9 of method §9, written out."""
    image = sharpened = sharpen(photo[:, :192])
    image = filter_image(image, DRAWN.first.blur.kernel())
    image = jpeg(rescale(image, 0.43, "bilinear"), 40.5)
    image = filter_image(image, DRAWN.second.blur.kernel())
    image = resize(image, (int(256 / 4 * 1.13), int(192 / 4 * 1.13)), "area")
    if jpeg_last:
        image = jpeg(filter_image(resize(image, (64, 48), "bicubic"), DRAWN.sinc.kernel()), 62.25)
    else:
        image = filter_image(resize(jpeg(image, 62.25), (64, 48), "bicubic"), DRAWN.sinc.kernel())
    expected = np.clip(image, 0, 1)

    lr, hr, drawn = apply(photo[:, :192], replace(DRAWN, jpeg_last=jpeg_last), np.random.default_rng(0))
    np.testing.assert_array_equal(lr, expected)
    np.testing.assert_array_equal(hr, sharpened)
    assert drawn.jpeg_last == jpeg_last


def test_the_target_may_stay_as_it_was(photo):
    plain = apply(photo, replace(DRAWN, sharpened_target=False), np.random.default_rng(0))
    np.testing.assert_array_equal(plain.hr, photo)
    np.testing.assert_array_equal(plain.lr, apply(photo, DRAWN, np.random.default_rng(0)).lr)


def test_noise_comes_after_each_resize(photo):
    """Noise added at 0.6 of the LR size and then enlarged is correlated between neighbours; later noise is not."""
    first = Stage(None, 0.15, "bilinear", None, None)
    second = Stage(None, 1.0, "bilinear", None, None)
    quiet = replace(DRAWN, first=first, second=second, sinc=None)

    def neighbours(**stage):
        rng = np.random.default_rng(0)
        noise = apply(photo, replace(quiet, **stage), rng).lr - apply(photo, quiet, rng).lr
        return np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]

    noise = Noise("gaussian", 20, False)
    assert neighbours(first=replace(first, noise=noise)) > 0.55  # measured 0.63
    assert abs(neighbours(second=replace(second, noise=noise))) < 0.04  # measured 0.001, standard error 0.009


def test_the_result_depends_only_on_the_generator(photo):
    hr = photo[:64, :64]
    once, again = (degrade(hr, XPSR, np.random.default_rng((7, 11))) for _ in range(2))
    np.testing.assert_array_equal(once.lr, again.lr)
    assert once.drawn == again.drawn
    other = degrade(hr, XPSR, np.random.default_rng((7, 12)))
    assert other.drawn != once.drawn


def test_the_input_is_unchanged(photo):
    hr = photo[:64, :64].copy()
    hr.flags.writeable = False
    for seed in range(5):
        degrade(hr, MILD, np.random.default_rng(seed))
    np.testing.assert_array_equal(hr, photo[:64, :64])


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_any_size(photo, size):
    """Every draw also works on crops that are smaller than the kernels."""
    hr = np.ascontiguousarray(photo[: size[0], : size[1]])
    for seed in range(40):
        lr, target, _ = degrade(hr, XPSR, np.random.default_rng(seed))
        assert lr.shape == (size[0] // 4, size[1] // 4, 3) and lr.dtype == np.float32
        assert target.shape == hr.shape and target.dtype == np.float32
        assert np.isfinite(lr).all() and lr.min() >= 0 and lr.max() <= 1


def test_no_degradation(photo):
    for seed in range(5):
        lr, hr, _ = degrade(photo, BICUBIC, np.random.default_rng(seed))
        np.testing.assert_array_equal(lr, np.clip(resize(photo, (64, 64), "bicubic"), 0, 1))
        np.testing.assert_array_equal(hr, photo)


def test_milder_pipeline_is_milder(photo):
    photo = np.ascontiguousarray(photo[64:192, 64:192])

    def error(config):
        pairs = [degrade(photo, config, np.random.default_rng(seed)) for seed in range(12)]
        return np.mean([np.mean((p.lr - resize(p.hr, (32, 32), "area")) ** 2) for p in pairs])

    assert error(MILD) < 0.55 * error(XPSR)  # measured 0.43


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 62, 3), np.float32), r"divisible by upscale=4, got \(64, 62\)"),
        (np.zeros((64, 64, 3), np.uint8), "float32 of shape"),
        (np.zeros((64, 64), np.float32), "float32 of shape"),
    ],
)
def test_wrong_images(unchecked, image, message):
    with pytest.raises(ValueError, match=message):
        degrade(image, XPSR, np.random.default_rng(0))
