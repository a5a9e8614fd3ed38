"""A model's networks on their devices, and how batches get to the devices and back."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from xpsr_jax import sharding
from xpsr_jax.models.first_stage_config import RRDBNetConfig
from xpsr_jax.models.rrdb import RRDBNet
from xpsr_jax.weights.model_folder import Model


class OnDevices:
    """The networks of a model, split by nnx, with their weights on every device.

    Attributes:
        graph, weights: graph and weights of the UNet, the ControlNet, the autoencoder and the text encoder together.
        autoencoder_graph: graph of the autoencoder alone. Its weights are `weights[2]`.
        first_stage: graph, weights and configuration of the first stage. None: the model has no first stage.
        devices: number of devices.
        capacity: number of images, or tiles of one image, that are computed at once.
        factor: side of a latent cell, in pixels.
        scaling: scaling factor of the latents.
        latent_channels: number of latent channels.
        within: returns the context manager in which the networks' programs must be called.
    """

    def __init__(self, model: Model, *, batch_size: int, mesh: Mesh | None) -> None:
        """
        Args:
            batch_size: images at once on each device.
            mesh: the devices over which batches are split. None: the default device.
        """
        self.graph, weights = nnx.split((model.unet, model.controlnet, model.autoencoder, model.text_encoder))
        self.autoencoder_graph = nnx.graphdef(model.autoencoder)
        self.devices = mesh.size if mesh else 1
        self.capacity = batch_size * self.devices
        self.factor = model.autoencoder.factor
        self.scaling = model.autoencoder.config.scaling_factor
        self.latent_channels = model.autoencoder.config.latent_channels
        # The batch is split over all devices. Weights that are on the mesh already are not moved (training may have
        # split them). Other weights are copied to each device. XLA shards everything in between.
        self._batch_sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names)) if mesh else None
        self.weights = sharding.on_every_device(weights, mesh) if mesh else weights
        self.first_stage: tuple[nnx.GraphDef[RRDBNet], nnx.State, RRDBNetConfig] | None = None
        if model.first_stage is not None:
            graph, first_weights = nnx.split(model.first_stage)
            placed = sharding.on_every_device(first_weights, mesh) if mesh else first_weights
            self.first_stage = graph, placed, model.first_stage.config
        self.within: Callable[[], contextlib.AbstractContextManager[object]] = (
            functools.partial(sharding.gathering_kernels, mesh) if mesh else contextlib.nullcontext
        )

    def fill(self, array: np.ndarray) -> np.ndarray | Array:
        """Pads a batch to `capacity` with copies of its last image, and splits it over the devices."""
        padding = [(0, self.capacity - len(array))] + [(0, 0)] * (array.ndim - 1)
        return self.spread(np.pad(array, padding, mode="edge"))

    def spread(self, array: np.ndarray) -> np.ndarray | Array:
        """Splits a batch over the devices. Its size must be a multiple of their number."""
        return array if self._batch_sharding is None else jax.device_put(array, self._batch_sharding)

    def fetch(self, tree: Any) -> Any:
        """Copies computed arrays to the host. Each process gets all of them."""
        if self._batch_sharding is not None and not self._batch_sharding.is_fully_addressable:
            tree = multihost_utils.process_allgather(tree, tiled=True)
        return jax.device_get(tree)
