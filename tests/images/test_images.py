"""Images in sft: tokens, loss and gradients are those of transformers' own processor and model, row by row."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from seeing_models import KINDS, seeing_model

from ft_plugins.models.processors import NAMING
from ftcore.api.plan import Run
from ftcore.cli import group
from ftcore.config.planner import make_plan
from ftcore.data.multimodal.images import ImageReader, ReadImage, frame_of
from ftcore.errors import RunError, UsageError
from ftcore.runner.run import load_model, new_trainer, run
from ftcore.training.batching.collators import collate
from ftcore.training.forward.causal_lm import CausalLMForward

FRAMES = {
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "llava": "<image>",
    "gemma3": "<start_of_image>",
    "qwen3_5": "<|vision_start|><|image_pad|><|vision_end|>",
    "pixtral": "[IMG]",
    "paligemma": "<image>",
    "mllama": "<|image|>",
}
MIDDLE = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``folders(model_type)``: a tiny model that sees."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = seeing_model(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three rows: one image, two images in two turns, none."""
    generator = np.random.default_rng(0)
    for name, size in (("wide.png", (90, 40)), ("small.jpg", (30, 60))):
        Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(tmp_path / name)
    rows = [
        {"messages": _turns("<image>What is it?", "A bird."), "images": ["wide.png"]},
        {
            "messages": _turns("Look: <image>", "I see.", "and <image>?", "Another one."),
            "images": ["small.jpg", "wide.png"],
        },
        {"messages": _turns("Hello", "Good day.")},
    ]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    return file


def _turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.fixture
def prepared(folders: Any, data: Path, tmp_path: Path) -> Callable[..., Run]:
    """``prepared(model_type, option=value)``: a run with its data."""

    def make(name: str, **values: Any) -> Run:
        base = {"model_name_or_path": str(folders(name)), "dataset": str(data), "dataset_dir": str(data.parent)}
        base |= {"output_dir": str(tmp_path / "out"), "template": "chatml", "template_check": "off", "do_train": True}
        base |= {"cutoff_len": 512, "per_device_train_batch_size": 3, "max_steps": 2, "save_strategy": "no"}
        base |= {"disable_shuffling": True, "logging_steps": 1}
        plan = make_plan(None, values=base | values)
        state = Run(plan=plan, tokenizer=plan.plugins.hook.ft_load_tokenizer(plan=plan))
        state.data = plan.stage.component.datasets(state)
        return state

    return make


def _own(state: Run, row: dict[str, Any], text: str) -> dict[str, Any]:
    """What transformers' processor makes of a row by itself."""
    images = [state.pictures._opened(picture.path, "") for picture in row.get("images", ())]
    return state.pictures.processor(text=[text], images=[images] if images else None, return_tensors="pt")


def _texts(name: str) -> list[str]:
    frame = FRAMES[name]
    return [
        f"<|im_start|>user\n{frame}What is it?{MIDDLE}A bird.<|im_end|>\n",
        f"<|im_start|>user\nLook: {frame}{MIDDLE}I see.<|im_end|>\n<|im_start|>user\nand {frame}?{MIDDLE}"
        "Another one.<|im_end|>\n",
        f"<|im_start|>user\nHello{MIDDLE}Good day.<|im_end|>\n",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "smoothing"),
    [*((name, 0.0) for name in KINDS if name != "paligemma"), ("qwen2_vl", 0.1), ("gemma3", 0.1)],
)
def test_tokens_loss_and_gradients_are_those_of_transformers(name: str, smoothing: float, prepared: Any) -> None:
    state = prepared(name, finetuning_type="full", label_smoothing_factor=smoothing)
    load_model(state)
    trainer = new_trainer(state)
    rows = [state.data.train[n] for n in range(3)]
    model, total, expected = state.model.eval(), 0.0, []
    for row, text in zip(rows, _texts(name), strict=True):
        own = _own(state, row, text)
        assert own["input_ids"][0].tolist() == row["input_ids"].tolist()
        labels = own["input_ids"].masked_fill(torch.from_numpy(row["weights"])[None] == 0, -100)
        logits = model(**own).logits[0, :-1].double()
        loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum", label_smoothing=smoothing)
        loss.backward()
        total += loss.item()
        expected.append(state.tokenizer.decode(row["input_ids"][row["weights"] > 0]))
    assert expected == ["A bird.<|im_end|>", "I see.<|im_end|>Another one.<|im_end|>", "Good day.<|im_end|>"]
    gradients = {key: tensor.grad.clone() for key, tensor in model.named_parameters() if tensor.grad is not None}
    model.zero_grad()
    loss = trainer.objective.loss_sum(trainer.data_collator(rows))
    loss.backward()
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert gradients
    for key, tensor in model.named_parameters():
        if tensor.requires_grad:
            torch.testing.assert_close(tensor.grad, gradients[key], rtol=1e-3, atol=1e-5)


def test_paligemma_reads_a_prompt_in_both_directions_and_an_answer_in_one(prepared: Any) -> None:
    """transformers' own: ``suffix`` is the answer, of token type 1, and all of the loss."""
    state = prepared("paligemma", finetuning_type="full", template="paligemma")
    load_model(state)
    trainer = new_trainer(state)
    row, processor = state.data.train[0], state.pictures.processor
    images = [state.pictures._opened(picture.path, "") for picture in row["images"]]
    own = processor(text=["<image>What is it?"], suffix=["A bird."], images=images, return_tensors="pt")
    # the template writes bos before the images, the processor after them
    assert sorted(own["input_ids"][0].tolist()) == sorted(row["input_ids"].tolist())
    kinds = trainer.data_collator([row])["images"][0]["token_type_ids"]
    assert kinds.tolist() == own["token_type_ids"].tolist()
    assert (row["weights"] > 0).tolist() == kinds[0].bool().tolist()
    ids = torch.from_numpy(row["input_ids"]).long()[None]
    given = {**own, "input_ids": ids, "labels": ids.masked_fill(kinds == 0, -100)}
    loss = state.model.eval()(**given).loss.item() * int(kinds.sum())
    assert trainer.objective.loss_sum(trainer.data_collator([row])).item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_paligemmas_text_alone_is_causal_with_padding_and_without(fused: bool, folders: Any) -> None:
    """Another last token moves no logit before it; of one row, of two as long, and of two of which one is padded."""
    from transformers import AutoModelForImageTextToText

    scorer = CausalLMForward(AutoModelForImageTextToText.from_pretrained(folders("paligemma")).eval())
    scorer.probe_capabilities()
    scorer.fused = fused
    ids = np.arange(40, 49)
    for others in ([], [ids + 20], [ids[:4]]):
        found = []
        for last in (50, 60):
            rows = [np.append(ids[:-1], last), *others]
            weights = [np.ones(len(row), np.float32) for row in rows]
            given = [{"input_ids": row, "weights": one, "index": 0} for row, one in zip(rows, weights, strict=True)]
            with torch.no_grad():
                found.append(scorer.logits(collate(given))[:7])
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_no_part_of_an_image_is_trained_even_on_the_prompt(prepared: Any) -> None:
    state = prepared("qwen2_vl", train_on_prompt=True)
    row = state.data.train[0]
    pad = state.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    of_image = row["input_ids"] == pad
    assert of_image.sum() == 3 * 1  # 84 x 28 pixels after rounding to 28: 3 merged patches
    assert not row["weights"][of_image].any()
    assert row["weights"][~of_image][1:].all()


TRAINED = {
    "freeze_vision_tower": ("model.visual.patch_embed", "model.visual.blocks"),
    "freeze_multi_modal_projector": ("model.visual.merger",),
    "freeze_language_model": ("model.language_model", "lm_head"),
}


@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
@pytest.mark.parametrize("part", TRAINED)
def test_each_part_is_trained_where_it_is_not_frozen(method: str, part: str, prepared: Any) -> None:
    state = prepared("qwen2_vl", finetuning_type=method, **{name: name != part for name in TRAINED})
    load_model(state)
    names = {name.removeprefix("base_model.model.") for name, t in state.model.named_parameters() if t.requires_grad}
    assert names
    assert all(name.startswith(TRAINED[part]) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_whole_run_leaves_what_can_be_loaded(method: str, prepared: Any, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageTextToText

    state = prepared("qwen2_vl", finetuning_type=method, save_strategy="steps", save_steps=1)
    assert run(state.plan) == 0
    log = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text().splitlines()]
    assert [entry["current_steps"] for entry in log if "loss" in entry] == [1, 2]
    assert log[1]["loss"] < log[0]["loss"]
    AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert json.loads((tmp_path / "out" / "processor_config.json").read_text())["processor_class"] == "Qwen2VLProcessor"
    if method == "lora":
        file = tmp_path / "export.yaml"
        file.write_text(
            f"model_name_or_path: {state.plan.model.model_name_or_path}\ntemplate: chatml\n"
            f"adapter_name_or_path: {tmp_path / 'out'}\nexport_dir: {tmp_path / 'merged'}\n"
        )
        CliRunner().invoke(group, ["export", str(file)], catch_exceptions=False)
        AutoImageProcessor.from_pretrained(tmp_path / "merged", backend="pil")
    model, found = AutoModelForImageTextToText.from_pretrained(
        tmp_path / ("out" if method == "full" else "merged"), output_loading_info=True
    )
    assert not found["missing_keys"]
    assert model.config.model_type == "qwen2_vl"


def test_the_largest_and_smallest_image(prepared: Any, tmp_path: Path) -> None:
    state = prepared("qwen2_vl", image_max_pixels=2000, image_min_pixels=1900)
    pictures = state.pictures
    assert isinstance(pictures, ImageReader)
    sizes = [pictures._opened(str(tmp_path / name), "").size for name in ("wide.png", "small.jpg")]
    assert sizes == [(67, 29), (30, 61)]  # sqrt(2000 / 3600) and sqrt(1900 / 1800) times


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, folder: (folder / "wide.png").write_bytes(b"no image"), "cannot be read as an image"),
        (lambda rows, folder: rows[0].update(images=["gone.png"]), "file 'gone.png' does not exist"),
        (lambda rows, folder: rows[0].update(images=[]), "images is empty, and the messages have <image>"),
    ],
)
def test_bad_images_are_bad_rows(change: Any, message: str, prepared: Any, data: Path) -> None:
    rows = json.loads(data.read_text())
    change(rows, data.parent)
    data.write_text(json.dumps(rows))
    with pytest.raises(UsageError, match=message):
        prepared("qwen2_vl")


@pytest.mark.parametrize("name", ["qwen2_vl", "llava"])
def test_an_image_that_the_processor_refuses_is_a_bad_row(name: str, prepared: Any, data: Path, tmp_path: Path) -> None:
    folder, rows = data.parent, json.loads(data.read_text())
    Image.new("RGB", (3000, 2)).save(folder / "thin.png")
    Image.new("L", (5, 5)).save(folder / "grey.png")
    rows += [
        {"messages": _turns("<image>, <image>?", "Thin."), "images": ["grey.png", "thin.png"]},
        {"messages": _turns("Hello again", "Good day.")},
    ]
    file = folder / "thin.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if name == "llava":  # takes any
        assert prepared(name, dataset=str(file)).data.accounting.train[0].kept == 5
        return
    said = f"{file}:4: images[1]: the model's processor refuses {folder / 'thin.png'}, 3000 x 2: ValueError: absolute"
    with pytest.raises(UsageError, match=re.escape(said)):
        prepared(name, dataset=str(file))
    skipped = prepared(name, dataset=str(file), on_bad_row="skip")
    assert (len(skipped.data.train), len(skipped.data.accounting.train[0].bad)) == (4, 1)
    assert run(prepared(name, dataset=str(file), on_bad_row="quarantine", max_steps=1).plan) == 0
    (kept,) = (tmp_path / "out").glob("*quarantine*")
    assert [json.loads(line)["row"] for line in kept.read_text().splitlines()] == rows[3:4]


def test_an_image_that_does_not_fit_leaves_its_row_out(prepared: Any) -> None:
    state = prepared("qwen2_vl", cutoff_len=24)
    assert "its images do not fit into cutoff_len" in str(state.data.accounting.train[0].untrainable)


def test_tokens_are_kept_until_an_image_changes(prepared: Any, data: Path) -> None:
    before = prepared("qwen2_vl").data.train
    again = prepared("qwen2_vl").data.train
    assert again.tables[0].source[0] == before.tables[0].source[0]
    assert again[0]["images"] == (ReadImage.of(str(data.parent / "wide.png")),)
    Image.new("RGB", (28, 28)).save(data.parent / "wide.png")
    after = prepared("qwen2_vl").data.train
    assert len(after[0]["input_ids"]) < len(before[0]["input_ids"])
    assert after.fingerprint != before.fingerprint


def test_an_image_that_changes_during_the_run_ends_it(prepared: Any, data: Path) -> None:
    state = prepared("qwen2_vl")
    load_model(state)
    trainer = new_trainer(state)
    Image.new("RGB", (28, 28)).save(data.parent / "wide.png")
    with pytest.raises(RunError, match=r"wide.png was changed or removed during the run"):
        trainer.data_collator([state.data.train[0]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"packing": True}, "packing is true, and rows with images"),
        ({"stage": "dpo"}, "preferences"),
        ({"streaming": True, "max_steps": 1}, "this run reads text only"),
        (
            {"do_predict": True, "predict_with_generate": True, "val_size": 2, "do_train": True},
            "do_predict does not support",
        ),
    ],
)
def test_what_reads_no_images_refuses_them(values: Any, message: str, prepared: Any) -> None:
    with pytest.raises(UsageError, match=message):
        run(prepared("qwen2_vl", **values).plan)


def test_preview_shows_images_folded(folders: Any, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model_name_or_path: {folders('qwen2_vl')}\ndataset: {data}\ndataset_dir: {data.parent}\n"
        "template: chatml\ntemplate_check: off\ndo_train: true\n"
    )
    shown = CliRunner().invoke(group, ["preview", str(file), "image_min_pixels=11000", "image_max_pixels=12000"]).output
    assert shown.splitlines()[1:6] == [
        f"── {data}:1  40 tokens, 8 trained",
        "<|im_start|>user",
        "<|vision_start|><|image_pad|>×12<|vision_end|>What is it?<|im_end|>",
        "<|im_start|>assistant",
        "⟦A bird.<|im_end|>⟧",
    ]


def test_rows_of_text_need_no_image_processor(
    prepared: Any, folders: Any, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folders("qwen2_vl"), bare, ignore=shutil.ignore_patterns("preprocessor_config.json"))
    with pytest.raises(UsageError, match="2 bad rows"):
        prepared("qwen2_vl", model_name_or_path=str(bare))
    assert f"the image processor of {bare} cannot be loaded, so rows with images are refused" in caplog.text
    data.write_text(json.dumps([{"messages": _turns("Hello", "Good day.")}]))
    assert run(prepared("qwen2_vl", model_name_or_path=str(bare)).plan) == 0


@pytest.mark.parametrize("file", NAMING)
def test_the_processor_that_the_files_name_is_used(
    file: str, prepared: Any, folders: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each file that may name it, before the model's type, which says LlavaProcessor."""
    folder = tmp_path / "copy"
    shutil.copytree(folders("pixtral"), folder)
    (folder / "processor_config.json").write_text(json.dumps({"patch_size": 16}))
    settings = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps(settings | {"processor_class": "PixtralProcessor"}))
    state = prepared("pixtral", model_name_or_path=str(folder), model_family="pixtral")
    assert type(state.pictures.processor).__name__ == "PixtralProcessor"
    (folder / file).write_text(json.dumps(settings | {"processor_class": "NoSuchProcessor"}))
    with pytest.raises(UsageError, match="2 bad rows"):
        prepared("pixtral", model_name_or_path=str(folder))
    assert "its files name NoSuchProcessor, for which transformers has no processor" in caplog.text


def test_a_model_type_says_the_processor_where_no_file_does(prepared: Any) -> None:
    assert type(prepared("llava").pictures.processor).__name__ == "LlavaProcessor"
    assert type(prepared("qwen3_5").pictures.processor).__name__ == "Qwen3VLProcessor"


@pytest.mark.parametrize("size", [(64, 64), (64, 32), (20, 61)])
def test_pixtral_writes_a_token_for_each_patch_and_row(size: tuple[int, int], prepared: Any, tmp_path: Path) -> None:
    """Patches of 16 pixels, a break after each row of them, an end after the last."""
    Image.new("RGB", size).save(tmp_path / "wide.png")
    state = prepared("pixtral")
    width, height = (-(-pixels // 16) for pixels in size)
    line = "[IMG]" * width
    text = f"<|im_start|>user\n{'[IMG_BREAK]'.join([line] * height)}[IMG_END]What is it?{MIDDLE}A bird.<|im_end|>\n"
    assert state.tokenizer.decode(state.data.train[0]["input_ids"]) == text


def test_a_processor_that_fails_on_any_image_is_refused_before_rows_are_read(
    prepared: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import LlavaProcessor

    def fails(*args: Any, **kwargs: Any) -> None:
        raise IndexError("no such patch")

    monkeypatch.setattr(LlavaProcessor, "replace_image_token", fails)
    with pytest.raises(UsageError, match="2 bad rows"):
        prepared("llava")
    assert "LlavaProcessor fails, so rows with images are refused: IndexError: no such patch" in caplog.text


def test_a_model_that_does_not_see_ends_the_run_at_the_first_batch(prepared: Any, folders: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "blind"
    shutil.copytree(folders("gemma3"), folder)
    weights = load_file(folder / "model.safetensors")
    [name] = [name for name in weights if name.endswith("mm_input_projection_weight")]
    save_file(weights | {name: torch.zeros_like(weights[name])}, folder / "model.safetensors", {"format": "pt"})
    state = prepared("gemma3", model_name_or_path=str(folder))
    with pytest.raises(UsageError, match="Gemma3ForConditionalGeneration gives the same loss for any image"):
        run(state.plan)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's
def test_an_adapter_of_the_text_half_is_refused(prepared: Any, folders: Any, tmp_path: Path) -> None:
    """What ft trained of Qwen 3.5 before it loaded the class that reads images; peft would leave it out."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    text = AutoModelForCausalLM.from_pretrained(folders("qwen3_5"))
    get_peft_model(text, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "text")
    state = prepared("qwen3_5", adapter_name_or_path=str(tmp_path / "text"), finetuning_type="lora")
    with pytest.raises(
        UsageError, match="text: 2 tensors of the adapter do not exist in this model, such as base_model"
    ):
        load_model(state)


@pytest.mark.parametrize("name", ["qwen3_5", "mllama"])
def test_answers_to_text_are_those_of_the_text_class(name: str, folders: Any) -> None:
    """Alone and in a batch of prompts of several lengths."""
    from transformers import AutoModelForCausalLM

    from ftcore.api.inference_types import Prompt
    from ftcore.api.samples import Message
    from ftcore.inference.target import find_target

    options = ["template=chatml", "max_new_tokens=8", "do_sample=false", "per_device_eval_batch_size=4"]
    generator = find_target(None, model=str(folders(name)), overrides=options).load()
    prompts = [Prompt((Message("user", text),)) for text in ("Hello there, my friend", "Hi", "A somewhat longer one?")]
    answers = {chunk.index: chunk.text for chunk in generator.stream(prompts) if chunk.finish}
    text = AutoModelForCausalLM.from_pretrained(folders(name))
    for number, prompt in enumerate(prompts):
        assert "".join(chunk.text for chunk in generator.stream([prompt])) == answers[number]
        task = generator.task(0, prompt)
        ids = torch.tensor([task.ids])
        stops = {"eos_token_id": sorted(generator.stop_ids), "pad_token_id": generator.pad}
        out = text.generate(ids, do_sample=False, max_new_tokens=8, **stops)[0, ids.shape[1] :].tolist()
        assert generator._text(task, out) == answers[number]


def test_how_an_image_is_written_is_read_off_the_models_template(prepared: Any) -> None:
    processor = prepared("qwen2_vl").pictures.processor
    assert frame_of(processor) == ""  # the tiny tokenizer's template is of text alone
    processor.chat_template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{{ '<|vision_start|><|image_pad|>!' if part.type == 'image' else part.text }}{% endfor %}{% endfor %}"
    )
    assert frame_of(processor) == "<|vision_start|><|image_pad|>!"
