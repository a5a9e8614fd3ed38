"""The hostile corpus as uploads: they are copied and read, or refused."""

import pytest

from tests.app.test_sessions import HASH
from tests.hostile.pictures import ESCAPE, PICTURES, make_pictures
from tests.inference.tiny_model import tiny_model
from xpsr_jax.app.sessions import Limits, Sessions
from xpsr_jax.app.studio import Studio
from xpsr_jax.errors import UserError
from xpsr_jax.images.limits import MAX_PIXELS


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(tiny_model(), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("name", PICTURES, ids=ascii)
def test_an_upload_is_read_or_refused(name, studio, tmp_path):
    folder = tmp_path / HASH
    make_pictures(folder, [name])
    visitors = Sessions(tmp_path, Limits())
    right = PICTURES[name][1]
    try:
        picture = studio.read(visitors.take(visitors.of("a"), str(folder / name)))
    except UserError as error:
        assert right is not True and ESCAPE not in str(error)
    else:
        assert right is not False and picture.rgb.shape[-1] == 3
