"""The networks: UNet, ControlNet, autoencoder and text encoder, and their attention kernels."""
