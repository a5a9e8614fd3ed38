"""Kernels, filtering, sharpening, resizing and JPEG give the released code's results."""

import cv2
import numpy as np
import pytest

from xpsr_jax.data.jpeg import jpeg
from xpsr_jax.data.kernels import filter_image, gaussian_kernel, noise_gain, sharpen, sinc_kernel
from xpsr_jax.data.resize import rescale, resize
from xpsr_jax.data.rounding import round_to_uint8


@pytest.mark.parametrize(
    ("shape", "size", "sigma_x", "sigma_y", "angle", "beta"),
    [
        ("iso", 13, 1.7, 1.7, 0, 1),
        ("aniso", 15, 2.6, 0.7, 0.9, 1),
        ("generalized_iso", 9, 1.2, 1.2, 0, 0.6),
        ("generalized_aniso", 21, 2.9, 0.4, -2.1, 3.3),
        ("plateau_iso", 11, 1.4, 1.4, 0, 1.3),
        ("plateau_aniso", 17, 2.2, 0.9, 2.7, 1.9),
    ],
)
def test_gaussian_kernels(operators, shape, size, sigma_x, sigma_y, angle, beta):
    kernel = gaussian_kernel(shape, size=size, sigma_x=sigma_x, sigma_y=sigma_y, angle=angle, beta=beta)
    np.testing.assert_allclose(kernel, operators[f"kernel.{shape}"], rtol=0, atol=1e-15)  # measured 8e-17


@pytest.mark.parametrize(("size", "cutoff"), [(9, 1.4), (21, 0.7)])
def test_sinc_kernels(operators, size, cutoff):
    padded = np.pad(sinc_kernel(size=size, cutoff=cutoff), (21 - size) // 2)
    np.testing.assert_allclose(padded, operators[f"kernel.sinc_{size}_w{cutoff}"], rtol=0, atol=1e-15)  # measured 0


def test_kernel_errors(unchecked):
    with pytest.raises(ValueError, match="odd size, got 8"):
        gaussian_kernel("iso", size=8, sigma_x=1, sigma_y=1)
    with pytest.raises(ValueError, match="odd size, got 8"):
        sinc_kernel(size=8, cutoff=1)
    with pytest.raises(ValueError, match="Unknown kernel shape 'box'"):
        gaussian_kernel("box", size=7, sigma_x=1, sigma_y=1)  # type: ignore[arg-type]


def test_filter_image(operators):
    for image, kernel, expected in zip(
        operators["image"], operators["filter2d.kernels"], operators["filter2d.out"], strict=True
    ):
        np.testing.assert_allclose(filter_image(image, kernel), expected, rtol=0, atol=5e-6)  # measured 1.6e-6


def test_separable_kernels_give_the_same_result(operators):
    """The fast path for isotropic Gaussians, compared with the general one."""
    image = operators["image"][0]
    kernel = gaussian_kernel("iso", size=13, sigma_x=1.7, sigma_y=1.7)
    expected = cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(filter_image(image, kernel), expected, rtol=0, atol=2e-6)  # measured 4e-7


@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        (gaussian_kernel("aniso", size=21, sigma_x=2.9, sigma_y=0.6, angle=0.7), 5e-7),  # measured 2.4e-7
        (gaussian_kernel("plateau_aniso", size=17, sigma_x=2.2, sigma_y=0.9, angle=2.7, beta=1.9), 1e-6),
        (gaussian_kernel("generalized_iso", size=21, sigma_x=0.4, sigma_y=0.4, beta=2.0), 5e-7),
        (sinc_kernel(size=15, cutoff=1.3), 1e-6),
        (sinc_kernel(size=21, cutoff=0.7), 1e-6),
    ],
    ids=["strips", "long tails", "small", "sinc in strips", "by Fourier"],
)
@pytest.mark.parametrize("size", [(64, 50), (9, 13)])
def test_all_filtering_methods_give_the_same_result(operators, kernel, error, size):
    """Compared with the plain sum in float64. Images smaller than the kernel are reflected more than once."""
    image = np.ascontiguousarray(operators["image"][0][: size[0], : size[1]])
    centre = len(kernel) // 2
    padded = cv2.copyMakeBorder(image.astype(np.float64), *[centre] * 4, cv2.BORDER_REFLECT_101)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, axis=(0, 1))
    expected = np.einsum("hwcij,ij->hwc", windows, kernel)
    np.testing.assert_allclose(filter_image(image, kernel), expected, rtol=0, atol=error)


@pytest.mark.parametrize("size", [(64, 50), (20, 33), (8, 8)])
def test_sharpening_of_any_size(operators, size):
    """The banded products, compared with OpenCV's own filter."""
    image = np.ascontiguousarray(operators["image"][0][: size[0], : size[1]])

    def blur(x):
        return cv2.GaussianBlur(x, (51, 51), 0, borderType=cv2.BORDER_REFLECT_101)

    detail = image - blur(image)
    mask = blur((np.abs(detail) * 255 > 10).astype(np.float32))
    expected = image + mask * (np.clip(image + 0.5 * detail, 0, 1) - image)
    np.testing.assert_allclose(sharpen(image), expected, rtol=0, atol=1e-6)  # measured 2.4e-7


def test_filtering_is_a_correlation_and_not_a_convolution():
    image = np.zeros((9, 9, 2), np.float32)
    image[4, 4] = 1
    kernel = np.arange(49.0).reshape(7, 7)
    expected = np.stack([kernel[::-1, ::-1]] * 2, axis=-1)
    np.testing.assert_array_equal(filter_image(image, kernel)[1:8, 1:8], expected)


def test_noise_gain():
    kernel = gaussian_kernel("iso", size=21, sigma_x=2.0, sigma_y=2.0)
    assert noise_gain(kernel) == pytest.approx(1 / (4 * np.pi * 2.0**2), rel=1e-4)


def test_sharpen(operators):
    for image, expected in zip(operators["image"], operators["usm.out"], strict=True):
        np.testing.assert_allclose(sharpen(image), expected, rtol=0, atol=3e-6)  # measured 1.0e-6


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [0.37, 1.3])
def test_rescale(operators, mode, scale):
    for image, expected in zip(operators["image"], operators[f"resize.{mode}.scale{scale}"], strict=True):
        np.testing.assert_allclose(rescale(image, scale, mode), expected, rtol=0, atol=3e-6)  # measured 1.2e-6


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_resize(operators, mode):
    for image, expected in zip(operators["image"], operators[f"resize.{mode}.size_18x22"], strict=True):
        np.testing.assert_allclose(resize(image, (18, 22), mode), expected, rtol=0, atol=3e-6)  # measured 8e-7


def test_bicubic_enlargement(operators):
    image = np.ascontiguousarray(operators["image"][0, :18, :22])
    expected = operators["resize.bicubic_up_size_72x88_of_18x22_crop_first"][0]
    np.testing.assert_allclose(resize(image, (72, 88), "bicubic"), expected, rtol=0, atol=1e-6)  # measured 2.4e-7


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
def test_rescale_rounds_sizes_down(mode):
    image = np.zeros((64, 50, 3), np.float32)
    for scale in np.random.default_rng(0).uniform(0.15, 1.5, 40):
        assert rescale(image, scale, mode).shape == (int(64 * scale), int(50 * scale), 3)
    assert rescale(image[:4, :4], 0.15, mode).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("qualities", "index"), [("30.0_95.0", 0), ("30.0_95.0", 1), ("47.5_62.25", 0), ("47.5_62.25", 1)]
)
def test_jpeg(operators, qualities, index):
    image = operators["image"][index, :53, :58]
    compressed = jpeg(image, float(qualities.split("_")[index]))
    np.testing.assert_allclose(compressed, operators[f"jpeg.{qualities}"][index], rtol=0, atol=1e-6)  # measured 2.4e-7


@pytest.mark.parametrize("quality", [30, 45, 60])
def test_jpeg_resembles_the_real_codec(photo, quality):
    """The simulation loses as much quality as OpenCV's JPEG, and its result is similar."""
    pixels = round_to_uint8(photo)
    _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    real = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB).astype(np.float32) / 255
    simulated = jpeg(pixels.astype(np.float32) / 255, quality)

    def psnr(a, b):
        return -10 * np.log10(np.mean((a - b) ** 2))

    assert psnr(simulated, photo) == pytest.approx(psnr(real, photo), abs=0.05)  # measured 0.016 dB at most
    assert psnr(simulated, real) > psnr(real, photo) + 2.5  # measured 3.06 dB at least
    assert simulated.mean() == pytest.approx(real.mean(), abs=5e-4)  # measured 2.2e-4
    assert simulated.var() == pytest.approx(real.var(), rel=5e-3)  # measured 2.9e-3


def test_jpeg_clips_its_input(photo):
    np.testing.assert_array_equal(jpeg(photo * 3 - 1, 50), jpeg(np.clip(photo * 3 - 1, 0, 1), 50))


def test_round_to_uint8_rounds_half_to_even_and_saturates():
    values = np.array([-0.1, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1.0, 1.2], np.float32)
    assert round_to_uint8(values).tolist() == [0, 0, 2, 2, 255, 255]
