"""Settings of the networks, as in the config.json files of diffusers and transformers, and names of kernels.

This module does not import JAX, because command lines load these settings even if nothing is computed.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from xpsr_jax.errors import UserError
from xpsr_jax.models.config_json import per_level, read_config, write_config
from xpsr_jax.serialisation import Length, Range, check_fields

Kernel = Literal["auto", "plain", "chunked", "two_pass", "flash", "cudnn"]
"""The name of an attention kernel (`attention.attention`)."""

Fusion = Literal["sfa", "serial", "high", "low"]
"""How a network attends to the two captions (`ControlNetConfig`)."""

# Limits of the settings. Values beyond them are mistakes, or come from files that would take forever to load.
_Count = Annotated[int, Range(1, 32)]
_Width = Annotated[int, Range(1, 2**17)]
_Size = Annotated[int, Range(1, 2**20)]
_Epsilon = Annotated[float, Range(0, 1, above=True)]
_Widths = Annotated[tuple[_Width, ...], Length(1, 8)]
_Names = Annotated[tuple[str, ...], Length(1, 8)]
_MAX_LAYERS = 128

# Settings of diffusers' UNets and ControlNets that these networks do not support, with the accepted values.
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None,),
    "addition_embed_type_num_heads": (64,),
    "addition_time_embed_dim": (None,),
    "class_embed_type": (None,),
    "dropout": (0.0,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_time_scale_shift": ("default",),
}
_FIXED_UNET: dict[str, tuple[Any, ...]] = {
    **_FIXED,
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "down_use_lowlevel_prompt": (False,),
    "dual_cross_attention": (False,),
    "mid_block_only_cross_attention": (None,),
    "mid_use_lowlevel_prompt": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_FIXED_CONTROLNET: dict[str, tuple[Any, ...]] = {
    **_FIXED,
    "controlnet_conditioning_channel_order": ("rgb",),
    "global_pool_conditions": (False,),
}
_FIXED_AUTOENCODER: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "force_upcast": (True, False),
    "latents_mean": (None,),
    "latents_std": (None,),
    "shift_factor": (None,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_FIXED_TEXT_ENCODER: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0.0, 0),
    "dropout": (0.0, 0),
    "model_type": ("clip_text_model",),
}
# Bookkeeping of transformers, and settings that only CLIP's training or its pooled output uses.
_IGNORED_TEXT_ENCODER = frozenset(
    (
        "architectures",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "dtype",
        "torch_dtype",
        "initializer_factor",
        "initializer_range",
        "projection_dim",
        "transformers_version",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "id2label",
        "label2id",
        "problem_type",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "tie_word_embeddings",
    )
)


@dataclass(frozen=True)
class EncoderConfig:
    """The settings common to a UNet and a ControlNet. They describe the encoder, which is the same in both.

    The defaults are Stable Diffusion 1.5's.

    Attributes:
      in_channels: channels of the latents.
      block_out_channels: widths, one per level. Each level has half the size of the previous one.
      layers_per_block: resnets per level.
      down_block_types: one per level: "CrossAttnDownBlock2D" attends to the captions, "DownBlock2D" does not.
      cross_attention_dim: width of the text embeddings.
      attention_head_dim: the *number* of heads, one for all levels or one per level (diffusers' name is a known
        misnomer). Ignored if `num_attention_heads` is given.
      num_attention_heads: the number of heads under its correct name, which some files use.
      transformer_layers_per_block: transformer layers at each attention site.
      norm_num_groups: groups of the group norms.
      norm_eps: epsilon of the group norms.
      flip_sin_to_cos: order of the timesteps' sinusoidal embedding (`layers.timestep_embedding`).
      freq_shift: frequency shift of the same embedding.
      downsample_padding: padding of the strided convolutions, in pixels on each side.
      use_linear_projection: use linear layers instead of 1x1 convolutions before and after the transformers.
      upcast_attention: compute scores and softmax in float32. It has no effect, because they are always float32 here.
        None, in some files of Stable Diffusion 2, means False.
    """

    in_channels: _Width = 4
    block_out_channels: _Widths = (320, 640, 1280, 1280)
    layers_per_block: _Count = 2
    down_block_types: _Names = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    cross_attention_dim: _Width = 768
    attention_head_dim: _Width | tuple[_Width, ...] = 8
    num_attention_heads: _Width | tuple[_Width, ...] | None = None
    transformer_layers_per_block: _Count = 1
    norm_num_groups: _Width = 32
    norm_eps: _Epsilon = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    downsample_padding: Annotated[int, Range(0, 1)] = 1
    use_linear_projection: bool = False
    upcast_attention: bool | None = False

    def __post_init__(self) -> None:
        check_fields(self)
        levels = len(self.block_out_channels)
        if len(self.down_block_types) != levels:
            raise UserError(f"down_block_types must have {levels} entries, one per level of block_out_channels")
        name = "num_attention_heads" if self.num_attention_heads else "attention_head_dim"
        heads = getattr(self, name)
        if isinstance(heads, tuple) and len(heads) != levels:
            raise UserError(f"{name} must be one number or have {levels} entries, one per level of block_out_channels")
        if levels * self.layers_per_block * self.transformer_layers_per_block > _MAX_LAYERS:
            raise UserError(f"layers_per_block and transformer_layers_per_block give more than {_MAX_LAYERS} layers")

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return per_level(self.num_attention_heads or self.attention_head_dim, len(self.block_out_channels))

    @property
    def feature_channels(self) -> list[int]:
        """Channels of the encoder's features: after conv_in, after every layer and after every downsample.

        The ControlNet's residuals have the same channels. The UNet's decoder uses the features in reverse order.
        """
        widths = self.block_out_channels
        last = len(widths) - 1
        return [widths[0], *(c for i, c in enumerate(widths) for _ in range(self.layers_per_block + (i < last)))]


@dataclass(frozen=True)
class UNetConfig(EncoderConfig):
    """Fields of diffusers' UNet2DConditionModel config.json, with Stable Diffusion 1.5's values.

    Attributes:
      out_channels: channels of the prediction.
      up_block_types: blocks of the decoder, coarsest level first: "CrossAttnUpBlock2D" or "UpBlock2D".
      sample_size: side of the latents in training; not used.
      conditional_attention: use Conditional Attention; False: the stock UNet.
    """

    out_channels: _Width = 4
    up_block_types: _Names = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    sample_size: _Size | tuple[_Size, _Size] | None = 64
    conditional_attention: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.up_block_types) != len(self.block_out_channels):
            raise UserError("up_block_types must have one entry per level of block_out_channels")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "UNetConfig":
        """The configuration in a config.json.

        Raises:
          ValueError: values are not supported; the message names every one.
        """
        blocks = data.get("up_block_types", cls.up_block_types)
        none = [False] * len(blocks) if isinstance(blocks, list | tuple) else None
        fixed = _FIXED_UNET | {"up_use_lowlevel_prompt": (none,)}
        return read_config(cls, data, fixed)

    def to_json(self) -> dict[str, Any]:
        """The config.json from which diffusers, the released code and `from_json` can make this network again."""
        fixed = _FIXED_UNET | {"up_use_lowlevel_prompt": ([False] * len(self.block_out_channels),)}
        if not self.conditional_attention:
            fixed = {key: value for key, value in fixed.items() if "lowlevel" not in key}
        return write_config(self, "UNet2DConditionModel", fixed)


@dataclass(frozen=True)
class ControlNetConfig(EncoderConfig):
    """Fields of diffusers' ControlNetModel config.json and of XPSR's released one. The defaults are the released ones.

    Attributes:
      conditioning_channels: channels of the image.
      conditioning_embedding_out_channels: widths of the image encoder; each one after the first halves the size.
      return_rgbs: with the pixel heads of the Degradation-Free Constraint.
      use_latent_pred: with the latent heads of the Degradation-Free Constraint.
      use_rrdb: with two RRDBs in the image encoder.
      fusion: how the captions are fused (paper, Table 3): "sfa" in parallel; "serial" one after the other; "high" or
        "low" uses only one caption.
    """

    conditioning_channels: _Width = 3
    conditioning_embedding_out_channels: _Widths = (16, 32, 96, 256)
    return_rgbs: bool = True
    use_latent_pred: bool = True
    use_rrdb: bool = False
    fusion: Fusion = "sfa"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ControlNetConfig":
        """The configuration in a config.json.

        Raises:
          ValueError: values are not supported; the message names every one.
        """
        data = dict(data)
        if not data.pop("use_lowlevel_prompt", True):
            data.setdefault("fusion", "high")
        return read_config(cls, data, _FIXED_CONTROLNET)

    def to_json(self) -> dict[str, Any]:
        """The config.json from which diffusers, the released code and `from_json` can make this network again."""
        fields = write_config(self, "ControlNetModel", _FIXED_CONTROLNET)
        return fields | {"use_lowlevel_prompt": self.fusion != "high"}

    @classmethod
    def like_unet(cls, unet: UNetConfig, **fields: Any) -> "ControlNetConfig":
        """The configuration with the UNet's encoder; `fields` are the ControlNet's other fields."""
        shared = {field.name: getattr(unet, field.name) for field in dataclasses.fields(EncoderConfig)}
        return cls(**shared | fields)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Fields of diffusers' AutoencoderKL config.json, with Stable Diffusion 1.5's values.

    Attributes:
      in_channels: channels of the images to encode.
      out_channels: channels of the decoded images.
      latent_channels: channels of the latents.
      block_out_channels: widths, one per level. Each level has half the size of the previous one.
      down_block_types: one per level; only the default type is supported.
      up_block_types: one per level; only the default type is supported.
      layers_per_block: resnets per level of the encoder; the decoder has one more.
      norm_num_groups: groups of the group norms.
      mid_block_add_attention: self-attention over all positions in the middle of encoder and decoder. Its cost grows
        with the square of the picture's area.
      sample_size: side of the images in training, in pixels; not used.
      scaling_factor: factor of the latents for diffusion, which makes their variance about 1.
    """

    in_channels: _Width = 3
    out_channels: _Width = 3
    latent_channels: _Width = 4
    block_out_channels: _Widths = (128, 256, 512, 512)
    down_block_types: _Names = ("DownEncoderBlock2D",) * 4
    up_block_types: _Names = ("UpDecoderBlock2D",) * 4
    layers_per_block: _Count = 2
    norm_num_groups: _Width = 32
    mid_block_add_attention: bool = True
    sample_size: _Size | tuple[_Size, _Size] = 512
    scaling_factor: Annotated[float, Range(0, above=True)] = 0.18215

    def __post_init__(self) -> None:
        check_fields(self)
        if set(self.down_block_types) != {"DownEncoderBlock2D"} or set(self.up_block_types) != {"UpDecoderBlock2D"}:
            raise ValueError("supported blocks: DownEncoderBlock2D and UpDecoderBlock2D")
        if not len(self.down_block_types) == len(self.up_block_types) == len(self.block_out_channels):
            raise ValueError("down_block_types, up_block_types and block_out_channels must have one entry per level")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "AutoencoderConfig":
        """The configuration in a config.json.

        Raises:
          ValueError: values are not supported; the message names every one.
        """
        return read_config(cls, data, _FIXED_AUTOENCODER)

    def to_json(self) -> dict[str, Any]:
        """The config.json from which diffusers and `from_json` can make this network again."""
        return write_config(self, "AutoencoderKL", _FIXED_AUTOENCODER)


@dataclass(frozen=True)
class TextEncoderConfig:
    """Fields of transformers' CLIPTextConfig, with the values of Stable Diffusion 1.5's ViT-L/14.

    Attributes:
      vocab_size: number of token ids.
      hidden_size: width of the embeddings.
      intermediate_size: width inside the feed-forward layers.
      num_hidden_layers: number of transformer layers.
      num_attention_heads: attention heads of each layer.
      max_position_embeddings: largest number of tokens.
      hidden_act: activation of the feed-forward layers.
      layer_norm_eps: epsilon of the layer norms.
    """

    vocab_size: _Size = 49408
    hidden_size: _Width = 768
    intermediate_size: _Width = 3072
    num_hidden_layers: Annotated[int, Range(1, 64)] = 12
    num_attention_heads: _Width = 12
    max_position_embeddings: _Size = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: _Epsilon = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.hidden_act not in ("quick_gelu", "gelu"):
            raise ValueError(f"unsupported hidden_act {self.hidden_act!r}; supported: quick_gelu, gelu")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TextEncoderConfig":
        """The configuration in a config.json.

        Raises:
          ValueError: values are not supported; the message names every one.
        """
        return read_config(cls, data, _FIXED_TEXT_ENCODER, _IGNORED_TEXT_ENCODER)

    def to_json(self) -> dict[str, Any]:
        """The config.json from which transformers and `from_json` can make this network again."""
        config = write_config(self, "", _FIXED_TEXT_ENCODER)
        del config["_class_name"]
        return config | {"architectures": ["CLIPTextModel"]}
