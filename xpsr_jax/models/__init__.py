"""The networks: UNet, ControlNet, autoencoder, text encoder, and the attention kernels that they compute with."""
