"""A small XPSR for two CPU cores, trained from scratch on photographs.

It does not use a pretrained Stable Diffusion; all networks are trained. PHOTOS is a folder of images with
captions.jsonl.

    xpsr train --config tiny:autoencoder --images.folder PHOTOS
    xpsr prepare pairs PHOTOS --output PAIRS --rounds 3 --crop-size 256 --target plain --exclude-of tiny \\
        --first-stage FIRST_STAGE
    xpsr train --config tiny --images.folder PAIRS --networks.first-stage FIRST_STAGE
    xpsr train --config tiny:end_to_end --images.folder PAIRS
    xpsr convert runs/tiny_end_to_end/model --output tiny --dtype float16

To train on two folders, with 42 and 372 photographs that are not held out, use `--images.mixture 42 PHOTOS 372 MORE`
instead of `--images.folder PHOTOS`. Every photograph is then used equally often. FIRST_STAGE is the folder of an ESRGAN
network, or a model folder that has one; its pictures are computed once, with the pairs.

Each stage starts from the export of the previous one. The last one trains all networks but the encoder together, for
one evaluation that starts from the first stage's picture, with losses in pixels.
"""

import dataclasses
from pathlib import Path

from xpsr_jax.config import Config, FewStep, Images, Loss, Mesh, Networks, Optimizer, Precision, Sampling, Validation
from xpsr_jax.data.config import DataConfig
from xpsr_jax.diffusion.schedule import Schedule
from xpsr_jax.models.configs import AutoencoderConfig, ControlNetConfig, TextEncoderConfig, UNetConfig

VARIANTS = ("default", "autoencoder", "end_to_end")

# 61 photographs that no stage is trained on, from all sources (a source is the name up to its first "_"). From the
# first folder: the eight that were always held out, two per source. From the second folder: a tenth of each source,
# rounded up, and at least two. They are those whose names have the smallest SHA-256, in that order. Every other
# photograph, beginning with the first, is used to choose settings; the rest to report results
# (`evaluation.crops.halves`).
HELD_OUT = (
    "lomiri_Kleiber_by_Lukas_Baubkus.jpg",
    "lomiri_Bridge_by_Sander_Klootwijk.jpg",
    "mate_LadyBird.jpg",
    "mate_YellowFlower.jpg",
    "opencv_board.jpg",
    "opencv_fruits.jpg",
    "plasma_ColorfulCups.jpg",
    "plasma_FallenLeaf.jpg",
    "budgie_motherboard_circuits.jpg",
    "budgie_orange_hallway.jpg",
    "cid22_1661950.jpg",
    "cid22_3004909.jpg",
    "cid22_2119713.jpg",
    "cid22_169647.jpg",
    "cid22_2062426.jpg",
    "cid22_1624307.jpg",
    "cid22_7218572.jpg",
    "cid22_551991.jpg",
    "cid22_2123337.jpg",
    "cid22_1391487.jpg",
    "cid22_5894435.jpg",
    "cid22_pexels_photo_7078476.jpg",
    "cid22_2504911.jpg",
    "cid22_160577.jpg",
    "cid22_459728.jpg",
    "cid22_7062197.jpg",
    "cid22_164595.jpg",
    "cid22_1029604.jpg",
    "cid22_pexels_photo_6096399.jpg",
    "cid22_3794859.jpg",
    "clic_22ea12c903e4.jpg",
    "clic_c80999cd5533.jpg",
    "clic_0369d229ba4c.jpg",
    "deepin_cristina_gottardi_wndpwtidut0_unsplash.jpg",
    "deepin_wolfgang_hasselmann_wrvvyxq11yk_unsplash.jpg",
    "elementary_suluh_kalba.jpg",
    "elementary_sunset_by_the_pier.jpg",
    "fedora_phare_du_petit_minou.jpg",
    "fedora_swimming_penguin.jpg",
    "fedora_milky_way.jpg",
    "mate_andrew_ridley_54228.jpg",
    "mate_joe_were_unsplash_hippo.jpg",
    "oceanic_69762.jpg",
    "oceanic_105518.jpg",
    "palapeli_european_honey_bee.jpg",
    "palapeli_cincinnati_bridge.jpg",
    "pop_samuel_zeller_337041.jpg",
    "pop_sean_afnan_244576.jpg",
    "ubuntu_the_grass_aint_greener_by_fix_pena.jpg",
    "ubuntu_landing_by_nic_dahlquist.jpg",
    "ubuntu_cornered.jpg",
    "ubuntu_classic_guitar_detail_by_sten_jrgen_pettersen.jpg",
    "ubuntu_blue_by_elslunko.jpg",
    "ubuntu_jelly_fish_by_radu_galan.jpg",
    "ubuntu_a_star_has_fallen_by_juan_pablo_lauriente.jpg",
    "ubuntu_murales_by_jan_bencini.jpg",
    "ubuntu_icy_grass_by_raymond_lavoie.jpg",
    "ubuntu_fleurs_de_prunus_24_by_jerome_boivin.jpg",
    "ubuntu_nylon_rainbow_by_sam_hewitt.jpg",
    "worksuite_ian_dooley_dubna1qmppa_unsplash.jpg",
    "worksuite_sven_van_der_pluijm_w7egqyjdqoe_unsplash.jpg",
)

LATENT_CHANNELS = 16
AUTOENCODER = AutoencoderConfig(
    latent_channels=LATENT_CHANNELS,
    block_out_channels=(24, 48),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    # Groups of two channels would remove each image's own brightness and contrast.
    norm_num_groups=1,
    # Attention between all 256 x 256 cells would take longer than the rest of the network.
    mid_block_add_attention=False,
    sample_size=128,
    scaling_factor=1.0,
)
TEXT_ENCODER = TextEncoderConfig(hidden_size=48, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2)
UNET = UNetConfig(
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    block_out_channels=(48, 96, 96),
    layers_per_block=1,
    # Only the coarsest level has attention: it has 64 x 64 cells for a picture of 512 x 512 pixels.
    down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    cross_attention_dim=TEXT_ENCODER.hidden_size,
    attention_head_dim=(1, 2, 2),
    norm_num_groups=8,
)
CONTROLNET = ControlNetConfig.like_unet(UNET, conditioning_embedding_out_channels=(16, 48))
# v-prediction, because a network of this size predicts the noise badly at the highest noise levels.
SCHEDULE = Schedule(prediction_type="v_prediction")

NEGATIVE_WORDS = ("blurry", "dotted", "noise", "unclear", "low-res", "over-smoothed")
# One evaluation, the last of 10 steps. It starts from the first stage's picture without noise.
SAMPLING = Sampling(
    sampler="consistency",
    steps=10,
    spacing="trailing",
    strength=0.1,
    start="lr_without_noise",
    guidance_scale=0.0,
    color_fix="wavelet",
    color_reference="first_stage",
    process_size=128,
    # In latent cells of 2 pixels. A picture of 512 x 512 takes seven times as long if Conditional Attention sees all of
    # its 256 x 256 cells at once.
    tile_size=64,
    tile_overlap=16,
    vae_tile_size=256,
)
NOTE = "A small model, trained on 414 photographs. It shows how XPSR works; a full-size model is much better."


def config(variant: str = "default") -> Config:
    images = Images(folder=Path("photos"), exclude=HELD_OUT, missing_exclusions="ignore", cache=True)
    cpu = Precision(dtype="float32", frozen_dtype="float32", remat=False)
    autoencoder = Config(
        name="tiny_autoencoder",
        stage="autoencoder",
        steps=700,
        batch_size=8,
        trained=((r"autoencoder\..*", True),),
        images=images,
        data=DataConfig(crop_size=64, crop_scale=(0.5, 1.0), degrade=False),
        networks=Networks(from_scratch=("autoencoder",), autoencoder=AUTOENCODER),
        # LPIPS on AlexNet costs a twentieth of LPIPS on VGG16. The latter is kept for evaluation.
        loss=Loss(reconstruction=1.0, perceptual=0.5, kl=1e-4, metric="lpips_alex"),
        optimizer=Optimizer(learning_rate=1e-3, b2=0.99, schedule="cosine", warmup=50, ema=0.99),
        precision=cpu,
        mesh=Mesh(data=-1, fsdp=1),
        validation=Validation(every=0),
        checkpoint_every=200,
    )
    xpsr = Config(
        name="tiny",
        steps=160,
        batch_size=8,
        trained=((r"(controlnet|unet|text_encoder)\..*", True),),
        images=images,
        data=DataConfig(
            crop_size=64,
            caption_dropout=0.1,
            clean_input_probability=0.05,
            negative_target_probability=0.1,
            negative_words=NEGATIVE_WORDS,
            first_stage="stored",
        ),
        networks=Networks(
            base=(autoencoder.run_folder / "model",),
            from_scratch=("unet", "controlnet", "text_encoder"),
            unet=UNET,
            controlnet=CONTROLNET,
            text_encoder=TEXT_ENCODER,
            schedule=SCHEDULE,
        ),
        optimizer=Optimizer(learning_rate=8e-4, b2=0.99, schedule="cosine", warmup=30, ema=0.99),
        precision=cpu,
        mesh=Mesh(data=-1, fsdp=1),
        validation=Validation(every=0),
        sampling=SAMPLING,
        note=NOTE,
        checkpoint_every=100,
    )
    end_to_end = dataclasses.replace(
        xpsr,
        name="tiny_end_to_end",
        stage="few_step",
        steps=700,
        trained=((r"(controlnet|unet|text_encoder)\..*", True), (r"autoencoder\.(decoder|post_quant_conv)\..*", True)),
        # It only sees the first stage's pictures, and only photographs as targets, as in use.
        data=dataclasses.replace(xpsr.data, negative_target_probability=0.0, clean_input_probability=0.0),
        networks=Networks(base=(xpsr.run_folder / "model",), from_scratch=()),
        loss=Loss(reconstruction=0.5, perceptual=1.0, dists=1.5, metric="lpips_alex"),
        few_step=FewStep(evaluations=(1,), adapted=(), realism="none"),
        optimizer=dataclasses.replace(autoencoder.optimizer, learning_rate=6e-4, warmup=50, ema=0.99),
    )
    return {"default": xpsr, "autoencoder": autoencoder, "end_to_end": end_to_end}[variant]
