"""Makes tests/vectors/samplers.safetensors: whole trajectories of diffusers' schedulers.

Run manually in an environment with torch. The tests only read the result and do not need torch. It was run with
torch 2.13.0 (CPU), diffusers 0.42.1, numpy 2.4.6:

    python tests/vectors/make_sampler_vectors.py

The schedule is Stable Diffusion's; other settings are the schedulers' defaults. A formula of latents and timestep
replaces the network (`network`; tests/diffusion/test_trajectories.py has the same). Schedulers treat each element
independently, so small latents of (1, 4, 2, 2) are enough. Everything is computed in float64, even where a scheduler
would round to float32. So a test measures only our rounding. The scheduler's own rounding error would be up to 7e-4,
where Euler's latents, divided by their signal, start at 4096.
"""

from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers import scheduling_ddpm, scheduling_euler_ancestral_discrete, scheduling_lcm
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
SHAPE = (1, 4, 2, 2)
STEPS = (1, 2, 5, 16)  # with 15 or more, diffusers treats the last steps of its multistep samplers differently
PREDICTIONS = ("epsilon", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")
STABLE_DIFFUSION: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}

# Name: class, its settings, arguments of its step.
SAMPLERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, {"eta": 0.0}),
    "ddim_eta_1": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, {"eta": 1.0}),
    "dpm_solver": ("DPMSolverMultistepScheduler", {}, {}),
    "dpm_solver_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}),
    "unipc": ("UniPCMultistepScheduler", {}, {}),
    "unipc_karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, {}),
    "euler": ("EulerDiscreteScheduler", {}, {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}, {}),
}
# The timesteps of few-step sampling: "trailing" spacing.
FEW_STEPS = {1: [999], 2: [999, 499], 4: [999, 749, 499, 249]}


def network(latents: Tensor, timestep: Tensor) -> Tensor:
    """A smooth function of unit size, which mixes the channels and depends on the timestep."""
    return 0.5 * latents + 0.5 * torch.sin(2 * latents.roll(1, dims=1) + timestep / 100)


def trajectory(
    name: str, start: Tensor, noises: Tensor, *, steps: int, first: int = 0, **settings: Any
) -> dict[str, Tensor]:
    """The timesteps, and the latents after every step from row `first` on, in the network's scale."""
    kind, own, arguments = SAMPLERS[name]
    scheduler = getattr(diffusers, kind)(**STABLE_DIFFUSION, steps_offset=1, **own, **settings)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    # Euler's schedulers store the latents divided by their signal.
    scaled = kind.startswith("Euler")
    unit = (1 + scheduler.sigmas**2) ** 0.5 if scaled else torch.ones(steps + 1)
    latents = start * unit[first]
    after = []
    for i, timestep in list(enumerate(scheduler.timesteps))[first:]:
        arguments = arguments | ({"variance_noise": noises[i]} if "eta" in arguments else {})
        prediction = network(scheduler.scale_model_input(latents, timestep), timestep)
        with (
            noise_of(scheduling_ddpm, noises[i]),
            noise_of(scheduling_euler_ancestral_discrete, noises[i]),
            mock.patch.object(torch, "float32", torch.float64),
        ):
            latents = scheduler.step(prediction, timestep, latents, **arguments).prev_sample
        after.append(latents / unit[i + 1])
    return {"timesteps": scheduler.timesteps.float(), "latents": torch.cat(after)}


def few_steps(start: Tensor, noises: Tensor, timesteps: list[int], **settings: Any) -> dict[str, Tensor]:
    """The same for the scheduler of latent consistency models, at these timesteps."""
    scheduler = diffusers.LCMScheduler(**STABLE_DIFFUSION, **settings)
    scheduler.set_timesteps(timesteps=timesteps)
    latents, after = start, []
    for i, timestep in enumerate(scheduler.timesteps):
        with noise_of(scheduling_lcm, noises[i]):
            latents = scheduler.step(network(latents, timestep), timestep, latents).prev_sample
        after.append(latents)
    return {"timesteps": scheduler.timesteps.float(), "latents": torch.cat(after)}


def noise_of(module: ModuleType, noise: Tensor) -> Any:
    return mock.patch.object(module, "randn_tensor", lambda *_, **__: noise)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(SHAPE, generator=generator).double()
    noises = torch.randn((max(STEPS), *SHAPE), generator=generator).double()
    tensors = {"start": start, "noises": noises}

    def add(key: str, name: str, **settings: Any) -> None:
        tensors.update({f"{key}.{k}": v for k, v in trajectory(name, start, noises, **settings).items()})

    for name in SAMPLERS:
        for prediction in PREDICTIONS:
            for spacing in SPACINGS:
                for steps in STEPS:
                    options = {"prediction_type": prediction, "timestep_spacing": spacing, "steps": steps}
                    add(f"{name}.{prediction}.{spacing}.{steps}", name, **options)
        # diffusers' DDIM takes the root of a difference that rounding may make negative. It gives NaN at eta 1.
        for steps in STEPS if name != "ddim_eta_1" else ():
            options = {
                "prediction_type": "v_prediction",
                "timestep_spacing": "trailing",
                "rescale_betas_zero_snr": True,
            }
            add(f"{name}.zero_snr.{steps}", name, **options, steps=steps)
        # Starting partway, like image-to-image pipelines at strength 0.5.
        add(f"{name}.partway", name, prediction_type="v_prediction", timestep_spacing="leading", steps=7, first=4)

    for prediction in PREDICTIONS:
        for steps, timesteps in FEW_STEPS.items():
            stored = few_steps(start, noises, timesteps, prediction_type=prediction)
            tensors.update({f"consistency.{prediction}.trailing.{steps}.{k}": v for k, v in stored.items()})

    rescaled = diffusers.DDPMScheduler(**STABLE_DIFFUSION, rescale_betas_zero_snr=True)
    tensors["zero_snr.alphas_cumprod"] = rescaled.alphas_cumprod
    guided = 3 * noises[0] + start
    tensors |= {"rescale.guided": guided, "rescale.out": rescale_noise_cfg(guided, start, guidance_rescale=0.7)}
    for key, tensor in tensors.items():
        assert torch.isfinite(tensor).all(), key
    save_file({key: tensor.float().contiguous() for key, tensor in tensors.items()}, HERE / "samplers.safetensors")


if __name__ == "__main__":
    main()
