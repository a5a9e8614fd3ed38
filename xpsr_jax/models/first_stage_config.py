"""Settings of the first stage, as its config.json has them. Nothing here imports JAX."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from xpsr_jax.errors import UserError
from xpsr_jax.models.config_json import read_config, write_config
from xpsr_jax.serialisation import Range, check_fields

_Width = Annotated[int, Range(1, 2**12)]


@dataclass(frozen=True)
class RRDBNetConfig:
    """What an RRDBNet is like; the values are those of RealESRGAN_x4plus.

    Attributes:
      features: of the blocks.
      blocks: residual-in-residual dense blocks.
      growth: channels that each convolution of a dense block adds.
      scale: how many times larger the result is than the picture.
      unshuffle: side of the squares of pixels that the network sees as one, with as many times more channels. So
        Real-ESRGAN makes networks of scale 2 and 1 of one of scale 4, with 2 and 4.
    """

    features: _Width = 64
    blocks: Annotated[int, Range(1, 64)] = 23
    growth: _Width = 32
    scale: Literal[1, 2, 4, 8] = 4
    unshuffle: Literal[1, 2, 4] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.doublings > 3:
            raise UserError(f"scale {self.scale} with unshuffle {self.unshuffle} would be more than three doublings")

    @property
    def doublings(self) -> int:
        """How often the network doubles its features' size."""
        return (self.scale * self.unshuffle).bit_length() - 1

    @property
    def reach(self) -> int:
        """Pixels of the picture, along each axis, beyond which nothing has an influence on a point of the result."""
        # Five convolutions a dense block; one before and one after all blocks; those behind each doubling reach half
        # as far as the ones before it, the last three at the final size.
        cells = 2 + 15 * self.blocks + sum(2.0**-i for i in range(1, self.doublings + 1)) + 2 * 2.0**-self.doublings
        return self.unshuffle * (int(cells) + 1)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RRDBNetConfig":
        """The configuration that a config.json describes.

        Raises:
          ValueError: naming every value that is not supported.
        """
        return read_config(cls, data, {})

    def to_json(self) -> dict[str, Any]:
        """The config.json from which `from_json` makes this network again."""
        return write_config(self, "RRDBNet", {})
