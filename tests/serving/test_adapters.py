"""Adapters beside their base model, chosen by name, against peft alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ftcore.cli.model_arguments import ModelArguments
from ftcore.cli.serve import _split_adapters, find_targets
from ftcore.errors import UsageError

from .conftest import OPTIONS, running

# peft 0.21 asks by a name that transformers 5.23 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TEXTS = ("hello world", "what is your name?", "你好,世界。")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, str]:
    """Two random adapters of other ranks."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = {}
    for number, name in enumerate(("first.one", "second"), start=1):
        config = LoraConfig(r=4 * number, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
        with torch.random.fork_rng():
            torch.manual_seed(number)
            model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.2)
        folders[name] = str(tmp_path_factory.mktemp("adapters") / name)
        model.save_pretrained(folders[name])
    return folders


def words(*adapters: str, model: Path | None = None, file: Path | None = None) -> ModelArguments:
    return ModelArguments(
        file=file and str(file), overrides=OPTIONS, model=model and str(model), adapters=adapters, force=False
    )


def alone(folder: str | None, tiny_model_dir: Path, text: str) -> str:
    """What peft and transformers answer."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    model = PeftModel.from_pretrained(model, folder).eval() if folder else model
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    chat = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    settings = {"do_sample": False, "max_new_tokens": 24, "pad_token_id": 0, "eos_token_id": 2}
    out = model.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **settings)
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


@pytest.mark.slow
def test_each_name_answers_as_its_adapter(tiny_model_dir: Path, adapters: dict[str, str]) -> None:
    folders = {tiny_model_dir.name: None, **adapters}
    asked = [(name, text) for text in TEXTS for name in folders]
    expected = [alone(folders[name], tiny_model_dir, text) for name, text in asked]
    assert len(set(expected)) > len(TEXTS) * 2
    targets = find_targets(words(model=tiny_model_dir), adapters)
    with running(targets) as server, server.client() as client, ThreadPoolExecutor(9) as pool:
        assert [one.id for one in client.models.list()] == list(folders)
        generators = [one.generator for one in server.served.values()]
        assert len({id(generator.model) for generator in generators}) == 1

        def one(pair: tuple[str, str]) -> str:
            messages = [{"role": "user", "content": pair[1]}]
            return client.chat.completions.create(model=pair[0], messages=messages).choices[0].message.content

        for _ in range(3):
            assert list(pool.map(one, asked)) == expected
        assert server.settled() == 0


def test_names_come_from_the_command_line_and_the_file(
    tiny_model_dir: Path, adapters: dict[str, str], tmp_path: Path
) -> None:
    name = tiny_model_dir.name
    plain, named = _split_adapters(words("a=x/y", "b=z", model=tiny_model_dir), "::1", 9)
    assert (plain.adapters, named) == ([], {"a": "x/y", "b": "z"})
    assert plain.overrides == [*OPTIONS, "serve_host=::1", "serve_port=9"]
    # the base model of an adapter need not be said
    found = find_targets(words(), adapters)
    assert {key: target.plan.model.adapter_name_or_path for key, target in found.items()} == {
        name: (),
        "first.one": (adapters["first.one"],),
        "second": (adapters["second"],),
    }
    file = tmp_path / "serve.yaml"
    file.write_text(
        f"model_name_or_path: {tiny_model_dir}\nserve_name: base\nserve_adapters: {{x: {adapters['second']}}}"
    )
    assert list(find_targets(words(file=file), {})) == ["base", "x"]
    assert list(find_targets(words(adapters["second"]), {})) == ["second"]


def test_what_cannot_be_served_together(tiny_model_dir: Path, adapters: dict[str, str], tmp_path: Path) -> None:
    from ftcore.serving.served_models import load

    with pytest.raises(UsageError, match="two models would have the name"):
        find_targets(words(model=tiny_model_dir), {tiny_model_dir.name: adapters["second"]})
    with pytest.raises(UsageError, match="write NAME=FOLDER, each name once"):
        _split_adapters(words("a=b", "a=c"), None, None)
    targets = find_targets(words(model=tiny_model_dir), {"both": adapters["second"]})
    both = find_targets(words(*adapters.values(), model=tiny_model_dir), {})
    with pytest.raises(UsageError, match="both is stacked on other adapters"):
        load(targets | {"both": next(iter(both.values()))})
    beams = find_targets(replace(words(model=tiny_model_dir), overrides=[*OPTIONS, "num_beams=2"]), {})
    with pytest.raises(UsageError, match="the server does not support beam search"):
        load(beams)
