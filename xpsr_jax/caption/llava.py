"""Captions by a LLaVA model that runs here with PyTorch (`pip install "xpsr-jax[torch]"`).

Any LlavaForConditionalGeneration model works.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpsr_jax.caption.answers import clean
from xpsr_jax.caption.captioning import Captioner, LoadedImage
from xpsr_jax.caption.in_flight import Stop
from xpsr_jax.caption.instructions import Instructions
from xpsr_jax.caption.llava_choices import LlavaDtype, LlavaTemplate
from xpsr_jax.data.captions import Caption
from xpsr_jax.errors import UserError
from xpsr_jax.weights import hub

# Exactly the released code's template, with its spaces (method §10).
RELEASED_TEMPLATE = "<image>\nUSER: {instruction} \nASSISTANT:"


@dataclass(frozen=True)
class Llava:
    """A loaded model and its processor.

    Attributes:
      model: transformers' LlavaForConditionalGeneration.
      processor: its LlavaProcessor.
      template: "released": LLaVA 1.5's prompt as the released code writes it. "model": the processor's chat template.
      max_new_tokens: the most tokens of an answer.
    """

    model: Any
    processor: Any
    template: LlavaTemplate = "released"
    max_new_tokens: int = 200

    def prompt(self, instruction: str) -> str:
        """The prompt for the model, with one image token. Raises Stop if the processor has no chat template to use."""
        if self.template == "released":
            return RELEASED_TEMPLATE.format(instruction=instruction)
        if not self.processor.chat_template:
            raise Stop("this model has no chat template: use --template released")
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        message = {"role": "user", "content": content}
        prompt: str = self.processor.apply_chat_template([message], add_generation_prompt=True)
        return prompt

    def answer(self, images: list[LoadedImage], instruction: str) -> list[str]:
        """The model's greedy answers, unchanged. Raises Stop if there is not enough memory."""
        import torch

        inputs = self.processor(
            images=[image.pixels for image in images],
            text=[self.prompt(instruction)] * len(images),
            padding=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        try:
            with torch.inference_mode():
                tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        except torch.OutOfMemoryError as error:
            raise Stop(f"there is not enough memory for {len(images)} images at once: lower --batch-size") from error
        answers: list[str] = self.processor.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return answers


def load_llava(
    name: str,
    *,
    dtype: LlavaDtype = "auto",
    device: str = "auto",
    template: LlavaTemplate = "released",
    max_new_tokens: int = 200,
) -> Llava:
    """Loads a model from a local folder or from the Hugging Face hub.

    Args:
      name: a folder, or a name of the hub: owner/name, optionally with @revision and :subfolder.
      dtype: "auto": bfloat16 on an accelerator that supports it, float16 on other accelerators, float32 on a CPU.
      device: PyTorch's name of the device. "auto": a GPU if there is one.

    Raises:
      UserError: PyTorch is not installed, or the model is missing, broken, or not a LLaVA model.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError('LLaVA runs on PyTorch: pip install "xpsr-jax[torch]"') from error
    from safetensors import SafetensorError
    from transformers import AutoConfig, LlavaForConditionalGeneration, LlavaProcessor

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if dtype == "auto":
        dtype = _best_dtype(torch, device)
    try:
        folder = _fetched(name)
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "llava":
            raise UserError(
                f"{name} is a {config.model_type} model, not LLaVA: serve it (vLLM, for instance) and use "
                "`xpsr caption server`"
            )
        hub.complete(folder)
        processor = LlavaProcessor.from_pretrained(folder)
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
        model.eval().to(torch.device(device))
    # Errors of the hub and the files, of configurations, of weights with wrong shapes, of the device.
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise UserError(
            f"LLaVA cannot be loaded from {name}: {first_line} Name a local folder with --model, or a model of the "
            "hub if it can be reached"
        ) from error
    processor.tokenizer.padding_side = "left"  # the answer must follow the last token of the prompt
    return Llava(model, processor, template, max_new_tokens)


def _fetched(name: str) -> Path:
    """The local folder, or the folder of the hub's model in the cache, at first without weights."""
    try:
        return hub.local(name)
    except UserError as error:
        raise UserError(f"LLaVA cannot be loaded from {name}: {error}. Name a local folder with --model") from error


def _best_dtype(torch: Any, device: str) -> LlavaDtype:
    if device == "cpu":
        return "float32"
    return "float16" if device.startswith("cuda") and not torch.cuda.is_bf16_supported() else "bfloat16"


def llava_captioner(llava: Llava, instructions: Instructions, *, batch_size: int) -> Captioner:
    """Returns a captioner that asks about `batch_size` images at once, one instruction after the other."""

    def captions(images: Iterable[LoadedImage]) -> Iterator[tuple[LoadedImage, Caption | UserError]]:
        images = iter(images)
        while batch := list(itertools.islice(images, batch_size)):
            high, low = (
                llava.answer(batch, instruction) if instruction else [""] * len(batch)
                for instruction in (instructions.high, instructions.low)
            )
            for image, *answers in zip(batch, high, low, strict=True):
                yield image, _caption(answers, instructions)

    return captions


def _caption(answers: list[str], instructions: Instructions) -> Caption | UserError:
    asked = instructions.high, instructions.low
    try:
        return Caption(*(clean(answer) if text else "" for answer, text in zip(answers, asked, strict=True)))
    except UserError as error:
        return error
