"""The LLaVA captioner with a small random LLaVA. The model, tokenizer and processor classes are the real ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizerFast,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tests.hub.conftest import hub  # noqa: F401
from xpsr_jax.caption import llava
from xpsr_jax.caption.captioning import LoadedImage
from xpsr_jax.caption.in_flight import Stop
from xpsr_jax.caption.instructions import HIGH, PRESETS, instructions
from xpsr_jax.cli.caption import main
from xpsr_jax.data.captions import Caption, read_captions
from xpsr_jax.errors import UserError

SIZE, PATCH = 28, 14
IMAGE_TOKENS = (SIZE // PATCH) ** 2
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role | upper }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
RNG = np.random.default_rng(0)


def make_tokenizer():
    """A Llama tokenizer with a vocabulary learned from the instructions."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = [text for preset in PRESETS.values() for text in (preset.high, preset.low)] + ["USER:\nASSISTANT:"]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    tokenizer = LlamaTokenizerFast(tokenizer_object=bpe, padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<pad>"]})
    tokenizer.pad_token = "<pad>"
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = make_tokenizer()
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=SIZE, patch_size=PATCH),
        text_config=LlamaConfig(
            **sizes, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, initializer_range=0.5
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small(folder):
    return llava.load_llava(str(folder), device="cpu", max_new_tokens=12)


def picture(height, width):
    pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
    return LoadedImage(f"{height}x{width}.png", b"", pixels, f"{height} {width}")


PICTURES = [picture(40, 60), picture(28, 28), picture(90, 30)]


def greedy(small, image, instruction):
    """Greedy decoding of one image, token by token, without `generate`. The text is decoded like in the released code
    (method §10).
    """
    inputs = small.processor(images=image.pixels, text=small.prompt(instruction), return_tensors="pt")
    tokens = inputs["input_ids"]
    with torch.inference_mode():
        for _ in range(small.max_new_tokens):
            logits = small.model(tokens, pixel_values=inputs["pixel_values"]).logits[:, -1]
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
            if tokens[0, -1] == small.model.generation_config.eos_token_id:
                break
    text = small.processor.decode(tokens[0], skip_special_tokens=True)
    return text.split("ASSISTANT:")[1].lstrip()


def test_prompts(small):
    assert small.prompt(HIGH) == (
        "<image>\nUSER: Please provide a descriptive summary of the content of this image. \nASSISTANT:"
    )
    by_model = llava.Llava(small.model, small.processor, template="model")
    assert by_model.prompt("Look.") == "USER: <image>\nLook. ASSISTANT:"
    for prompt in (small.prompt(HIGH), by_model.prompt(HIGH)):
        tokens = small.processor(images=PICTURES[0].pixels, text=prompt)["input_ids"]
        assert np.sum(np.array(tokens) == small.model.config.image_token_index) == IMAGE_TOKENS
    without = LlavaProcessor(small.processor.image_processor, small.processor.tokenizer)
    bare = llava.Llava(small.model, without, template="model")
    with pytest.raises(Stop, match="no chat template: use --template released"):
        bare.prompt(HIGH)


def test_answers_of_a_batch_equal_greedy_decoding_one_by_one(small):
    for instruction in (HIGH, PRESETS["paper"].low):
        answers = small.answer(PICTURES, instruction)
        assert [answer.lstrip() for answer in answers] == [greedy(small, image, instruction) for image in PICTURES]
        assert len(set(answers)) == 3  # the answers depend on the images


def test_captions_come_in_batches(small):
    asked = instructions("paper", "both")
    results = list(llava.llava_captioner(small, asked, batch_size=2)(iter(PICTURES)))
    assert [image.name for image, _ in results] == [image.name for image in PICTURES]
    for image, caption in results:
        answers = [small.answer([image], text)[0] for text in (asked.high, asked.low)]
        assert caption == Caption(*(" ".join(answer.split()) for answer in answers))
    [(_, low)] = llava.llava_captioner(small, instructions("released", "low"), batch_size=2)(PICTURES[:1])
    assert isinstance(low, Caption) and low.high == "" and low.low


def test_the_command(folder, tmp_path, capsys):
    for image in PICTURES:
        PillowImage.fromarray(image.pixels).save(tmp_path / image.name)
    output = tmp_path / "captions.jsonl"
    options = [str(tmp_path), "--output", str(output), "--model", str(folder), "--device", "cpu"]
    assert main(["llava", *options, "--max-new-tokens", "12", "--batch-size", "2"]) == 0
    assert capsys.readouterr().out == f"{output}: 3 captioned\n"
    assert read_captions(output).keys() == {image.name for image in PICTURES}
    assert json.loads(output.read_text().split("\n")[0])["source"] == f"{folder}, paper instructions"


def test_a_model_of_the_hub(folder, hub):  # noqa: F811
    commit = hub.add("a/llava", folder, **{"pytorch_model.bin": b"a pickle"})
    before = llava.load_llava(str(folder), device="cpu", max_new_tokens=5).answer(PICTURES, HIGH)
    for name in ("a/llava", f"a/llava@{commit}"):
        assert llava.load_llava(name, device="cpu", max_new_tokens=5).answer(PICTURES, HIGH) == before
    assert "pytorch_model.bin" not in hub.fetched() and "model.safetensors" in hub.fetched()


def test_half_precision(folder):
    half = llava.load_llava(str(folder), device="cpu", dtype="bfloat16", max_new_tokens=3)
    assert half.model.dtype == torch.bfloat16 and len(half.answer(PICTURES, HIGH)) == 3


def test_unusable_models_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"LLaVA cannot be loaded from .*nowhere.*Name a local folder with --model"):
        llava.load_llava(str(tmp_path / "nowhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"LLaVA cannot be loaded from nobody/nothing: .*Name a local folder"):
        llava.load_llava("nobody/nothing")
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match="is a llama model, not LLaVA: serve it"):
        llava.load_llava(str(tmp_path / "llama"))
    (tmp_path / "broken").mkdir()
    for file in folder.iterdir():
        (tmp_path / "broken" / file.name).write_bytes(
            file.read_bytes()[: 4096 if file.suffix == ".safetensors" else None]
        )
    with pytest.raises(UserError, match=r"LLaVA cannot be loaded from .*broken"):
        llava.load_llava(str(tmp_path / "broken"), device="cpu")
