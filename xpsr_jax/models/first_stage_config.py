"""Settings of the first stage, as in its config.json. This module does not import JAX."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from xpsr_jax.errors import UserError
from xpsr_jax.models.config_json import read_config, write_config
from xpsr_jax.serialisation import Range, check_fields

_Width = Annotated[int, Range(1, 2**12)]


@dataclass(frozen=True)
class RRDBNetConfig:
    """The configuration of an RRDBNet. The defaults are those of RealESRGAN_x4plus.

    Attributes:
      features: channels of the blocks.
      blocks: number of residual-in-residual dense blocks.
      growth: channels that each convolution of a dense block adds.
      scale: size of the result divided by the picture's size.
      unshuffle: side of the squares of pixels that are merged into one cell with more channels. With 2 and 4,
        Real-ESRGAN makes networks of scale 2 and 1 from one of scale 4.
    """

    features: _Width = 64
    blocks: Annotated[int, Range(1, 64)] = 23
    growth: _Width = 32
    scale: Literal[1, 2, 4, 8] = 4
    unshuffle: Literal[1, 2, 4] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.doublings > 3:
            raise UserError(f"scale {self.scale} with unshuffle {self.unshuffle} needs more than three doublings")

    @property
    def doublings(self) -> int:
        """How many times the network doubles the size of its features."""
        return (self.scale * self.unshuffle).bit_length() - 1

    @property
    def reach(self) -> int:
        """The receptive field: a point of the result depends on pixels up to this distance along each axis."""
        # Each dense block has five convolutions. There is one before and one after all blocks. A convolution after a
        # doubling reaches half as far as one before it; the last three work at the final size.
        cells = 2 + 15 * self.blocks + sum(2.0**-i for i in range(1, self.doublings + 1)) + 2 * 2.0**-self.doublings
        return self.unshuffle * (int(cells) + 1)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RRDBNetConfig":
        """The configuration in a config.json.

        Raises:
          ValueError: values are not supported; the message names every one.
        """
        return read_config(cls, data, {})

    def to_json(self) -> dict[str, Any]:
        """The config.json from which `from_json` makes this network again."""
        return write_config(self, "RRDBNet", {})
