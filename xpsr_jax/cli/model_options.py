"""Options that choose a command's model and its number format."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from xpsr_jax.assets import TINY_MODEL
from xpsr_jax.errors import in_one_line, say

if TYPE_CHECKING:
    from xpsr_jax.weights.model_folder import Model


@dataclass(frozen=True)
class ModelOptions:
    """The model.

    Attributes:
        model: Model folder, single file of Stable Diffusion, or model on the hub, owner/name[@revision][:folder].
            Several are merged, and later ones take precedence: for example Stable Diffusion 1.5, then XPSR.
        variant: Variant of the weight files, such as fp16 for model.fp16.safetensors.
        first_stage: Network that cleans and enlarges an image before the other networks: a folder or file of an ESRGAN
            network, or a model folder that has one. none: no such network.
        dtype: Number format of weights and computation.
    """

    model: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(metavar="DIR...", help_behavior_hint="(default: the one that ships with the package)"),
    ] = ()
    variant: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the plain files)")] = (
        None
    )
    first_stage: Annotated[
        str | None, tyro.conf.arg(metavar="DIR|none", help_behavior_hint="(default: the model's own, if it has one)")
    ] = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The sources of the model. By default, the model that ships with the package."""
        return self.model or (TINY_MODEL,)

    def load(self, *, shapes_only: bool = False) -> "Model":
        """Loads the model for inference, and prints its name. Raises UserError.

        Args:
            shapes_only: load shapes instead of arrays, for planning.
        """
        import jax.numpy as jnp

        import xpsr_jax
        from xpsr_jax.inference.compilation import with_fast_convolutions

        loaded = xpsr_jax.load(
            *self.folders,
            dtype=jnp.dtype(self.dtype),
            variant=self.variant,
            first_stage=self.first_stage or "own",
            shapes_only=shapes_only,
        )
        model = with_fast_convolutions(loaded)
        say(f"Model: {', '.join(map(str, self.folders))}. {in_one_line(model.note)}")
        if not self.model:
            say("This is the model that ships with the package; choose another with --model.")
        return model
