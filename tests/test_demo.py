"""The demo's picture: what it shows, and where."""

import numpy as np

from xpsr_jax.demo import main, side_by_side


def test_pictures_stand_side_by_side_under_their_labels() -> None:
    red = np.full((40, 200, 3), (255, 0, 0), np.uint8)
    blue = np.full((40, 100, 3), (0, 0, 255), np.uint8)
    picture = side_by_side({"before": red, "after": blue})
    header = picture.shape[0] - 40
    np.testing.assert_array_equal(picture[header:, :200], red)
    np.testing.assert_array_equal(picture[header:, -100:], blue)
    assert (picture[header:, 200:-100] == 255).all() and picture.shape[1] > 300
    for label in (picture[:header, :200], picture[:header, -100:]):
        assert label.min() < 100 < label.mean()  # dark letters on white


def test_wrong_arguments_show_the_usage(capsys) -> None:
    assert main(["--steps", "3"]) == 2
    assert main(["--help"]) == 0
    assert "python -m xpsr_jax.demo [FOLDER]" in capsys.readouterr().out
