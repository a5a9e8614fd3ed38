"""Low-level captions describe the degraded image correctly, in varied words."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.stats import spearmanr

from xpsr_jax.data.config import XPSR
from xpsr_jax.data.degradation import Blur, Drawn, Noise, Stage, apply, draw
from xpsr_jax.data.kernels import sharpen
from xpsr_jax.data.quality import appearance, describe

CLEAN = Drawn(
    upscale=4,
    sharpen=False,
    sharpened_target=False,
    first=Stage(None, 1.0, "area", None, None),
    second=Stage(None, 1.0, "area", None, None),
    sinc=None,
    final_mode="area",
    jpeg_last=True,
)


def without(drawn: Drawn, *steps: str) -> Drawn:
    first, second = (replace(stage, **dict.fromkeys(steps)) for stage in (drawn.first, drawn.second))
    return replace(drawn, first=first, second=second)


def test_blur_and_noise_estimates_follow_measurement(photo):
    """Compared with measurements on a real photograph with 80 drawn degradations."""
    photo = np.ascontiguousarray(photo[64:192, 64:192])
    reduced = cv2.resize(sharpen(photo), (32, 32), interpolation=cv2.INTER_AREA)

    def detail(image):
        return np.square(np.diff(image, axis=0)).mean() + np.square(np.diff(image, axis=1)).mean()

    sigmas = np.linspace(0.1, 4, 40)
    softened = [detail(cv2.GaussianBlur(reduced, (0, 0), sigma)) for sigma in sigmas]
    estimates, measurements = [], []
    for seed in range(80):
        drawn = draw(XPSR, np.random.default_rng(seed))
        quiet = apply(photo, without(drawn, "noise", "jpeg_quality"), np.random.default_rng(0)).lr
        noise = apply(photo, without(drawn, "jpeg_quality"), np.random.default_rng(0)).lr - quiet
        noise -= cv2.GaussianBlur(noise, (0, 0), 3)  # removes the shift that clipping adds to flat parts
        measurements.append((np.interp(-detail(quiet), -np.array(softened), sigmas), noise.std() * 255))
        seen = appearance(drawn)
        estimates.append((seen.blur, seen.noise))
    (blur, noise), (real_blur, real_noise) = np.transpose(estimates), np.transpose(measurements)
    assert spearmanr(blur, real_blur)[0] > 0.8  # measured 0.89
    assert spearmanr(noise, real_noise)[0] > 0.8  # measured 0.86
    assert np.median(noise / real_noise) == pytest.approx(1, abs=0.25)  # measured 1.15


def test_default_wording():
    noisy = Noise("gaussian", 20.0, gray=False)
    blurred = Blur("iso", 21, sigma_x=4.0, sigma_y=4.0)
    assert describe(None) == "The image is sharp and clear, with little noise and no compression artifacts."
    assert describe(CLEAN) == describe(None)
    drawn = replace(CLEAN, second=Stage(None, 1.0, "area", noisy, 40.0))
    assert describe(drawn) == "The image is sharp, with heavy colored noise and heavy compression artifacts."
    drawn = replace(CLEAN, second=Stage(None, 1.0, "area", replace(noisy, gray=True, strength=4.0), 80.0))
    assert describe(drawn) == "The image is sharp, with slight gray noise and slight compression artifacts."
    drawn = replace(CLEAN, first=replace(CLEAN.first, blur=blurred))
    assert describe(drawn) == "The image is moderately blurry, with little noise and no compression artifacts."
    drawn = replace(CLEAN, second=Stage(None, 0.3, "area", None, 55.0))
    assert describe(drawn) == (
        "The image is moderately blurry, with moderate compression artifacts and a heavy loss of detail."
    )


def test_grades_grow_with_the_degradation():
    def blur(sigma):
        kernel = Blur("iso", 21, sigma_x=sigma, sigma_y=sigma)  # of an image of LR size
        stages = {"first": replace(CLEAN.first, scale=0.25), "second": replace(CLEAN.second, blur=kernel)}
        return describe(replace(CLEAN, **stages))

    def noise(strength):
        return describe(replace(CLEAN, second=replace(CLEAN.second, noise=Noise("gaussian", strength, False))))

    def compression(quality):
        return describe(replace(CLEAN, second=replace(CLEAN.second, jpeg_quality=quality)))

    def resolution(scale):
        return describe(replace(CLEAN, second=replace(CLEAN.second, scale=scale)))

    for sigma, words in (
        (0.0001, "sharp"),
        (0.7, "slightly blurry"),
        (1.0, "moderately blurry"),
        (1.6, "heavily blurry"),
    ):
        assert words in blur(sigma)
    for strength, words in ((1, "little noise"), (5, "slight colored"), (9, "moderate colored"), (25, "heavy colored")):
        assert words in noise(strength)
    for quality, words in ((95, "no compression"), (75, "slight comp"), (60, "moderate comp"), (30, "heavy comp")):
        assert words in compression(quality)
    for scale, words in ((1.0, "sharp and clear"), (0.8, "slight loss"), (0.6, "moderate loss"), (0.3, "heavy loss")):
        assert words in resolution(scale)


def test_the_stronger_noise_determines_the_kind():
    def kind(first: Noise, second: Noise):
        drawn = replace(CLEAN, first=replace(CLEAN.first, noise=first), second=replace(CLEAN.second, noise=second))
        return appearance(drawn).gray_noise

    weak, strong = Noise("gaussian", 2, gray=True), Noise("poisson", 2.0, gray=False)
    assert not kind(weak, strong) and kind(strong, replace(weak, strength=20))


def test_wordings_vary_and_depend_only_on_the_generator():
    drawn = [draw(XPSR, np.random.default_rng(seed)) for seed in range(200)]
    texts = [describe(d, np.random.default_rng((1, i))) for i, d in enumerate(drawn)]
    assert texts == [describe(d, np.random.default_rng((1, i))) for i, d in enumerate(drawn)]
    assert len(set(texts)) == 200
    same = {describe(drawn[0], np.random.default_rng(seed)) for seed in range(100)}
    assert len(same) > 50
    clean = {describe(None, np.random.default_rng(seed)) for seed in range(100)}
    assert len(clean) > 50
    words = " ".join(clean)
    assert "blurry" not in words and "poor" not in words and "grain" not in words
    for text in texts:
        assert text.endswith(".") and text[0].isupper() and "  " not in text and " ," not in text
        assert len(text.split()) < 45  # fits into CLIP's 77 tokens
