import numpy as np
import pytest
from PIL import Image

from xpsr_jax.inference.sizes import network_size, to_network_size, to_output_size

SD = {"upscale": 4, "process_size": 512, "factor": 8}


@pytest.mark.parametrize(
    ("lr", "expected"),
    [
        ((128, 128), (512, 512)),
        ((130, 131), (520, 520)),  # 520 x 524, floored
        ((100, 150), (512, 768)),  # 400 x 600, then the shorter side to 512
        ((97, 33), (1504, 512)),  # 388 x 132 -> int(512 * 388 / 132) = 1504
        ((1, 1), (512, 512)),
        ((1, 3), (512, 1536)),
        ((257, 129), (1024, 512)),  # 1028 x 516
    ],
)
def test_network_size(lr, expected):
    assert network_size(*lr, **SD) == expected
    if max(expected) < 1000:
        assert to_network_size(np.zeros((*lr, 3), np.uint8), **SD).shape == (*expected, 3)


def test_without_a_process_size_small_images_still_have_a_latent_cell():
    assert network_size(1, 9, upscale=1, process_size=0, factor=8) == (8, 8)
    assert network_size(13, 22, upscale=2, process_size=0, factor=4) == (24, 44)


def test_the_resizes_are_pils():
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    bicubic = Image.fromarray(image).resize((124, 80), Image.BICUBIC)
    expected = bicubic.resize((198, 128), Image.BILINEAR).resize((192, 128), Image.BICUBIC)
    np.testing.assert_array_equal(to_network_size(image, upscale=4, process_size=128, factor=8), expected)


def test_output_size_is_the_lrs_times_upscale():
    restored = np.zeros((512, 512, 3), np.uint8)
    assert to_output_size(restored, (101, 99, 3), upscale=4).shape == (404, 396, 3)
