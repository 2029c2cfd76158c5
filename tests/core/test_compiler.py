"""torch's compiler is read when something is compiled, and works as it does where it was read at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import sys, torch
from ftcore.compiler import put_off_compiler
put_off_compiler()
put_off_compiler()  # the second time changes nothing

def read():
    return "torch._dynamo.eval_frame" in sys.modules

@torch.compiler.disable
def kept(x):
    return x + 1 if not torch.compiler.is_compiling() else x + 100

@torch.compiler.disable(recursive=False, reason="a test")
def named(x):
    return x

@torch._dynamo.assume_constant_result
def constant():
    return 3

@torch._dynamo.allow_in_graph
def allowed(x):
    return x * constant()

model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
from accelerate.utils.other import has_compiled_regions, is_compiled_module
import torch._dynamo
assert hasattr(torch, "_dynamo") and kept(1) == 2 and named(4) == 4 and kept.__name__ == "kept"
assert not is_compiled_module(model) and not has_compiled_regions(model)
assert not read()
"""

USES = {
    "compiling": """
compiled = torch.compile(lambda x: kept(allowed(x)), backend="eager")
assert compiled(torch.tensor(1.0)) == 4.0  # 100 more where the disabled function was compiled
assert torch._dynamo.trace_rules.is_callable_allowed(allowed)
assert is_compiled_module(torch.compile(model, backend="eager"))
assert has_compiled_regions(torch.nn.Sequential(torch.compile(model, backend="eager")))
assert isinstance(torch.compile(model), torch._dynamo.eval_frame.OptimizedModule)
optimizer.zero_grad()
""",
    "a part": "from torch._dynamo.eval_frame import OptimizedModule\nassert not isinstance(model, OptimizedModule)\n",
    "a setting": "torch._dynamo.config.capture_scalar_outputs = True\n",
    "a class": "torch.compiler.disable(torch.nn.Linear(2, 2))(torch.ones(2))\n",
    "what eval_frame has": "assert torch._dynamo.eval_frame.innermost_fn(constant) is constant\n",
}


@pytest.mark.parametrize("use", USES)
def test_it_is_read_when_it_is_used(use: str) -> None:
    """Marks that functions got before count from then on; what asks in vain reads nothing."""
    code = START + USES[use] + "assert read()\nimport torch._dynamo.config\nassert torch._dynamo.config is not None\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_functions_of_a_package_are_compiled_when_they_are_called(tmp_path: Path) -> None:
    """bitsandbytes compiles four of its own when it is imported."""
    (tmp_path / "ft_test_compiles.py").write_text(
        "import torch\n"
        "def _plain(x):\n    'Doubled.'\n    return 2 * x if torch.compiler.is_compiling() else x\n"
        "one = torch.compile(_plain, backend='eager')\n"
        "@torch.compile(backend='eager')\ndef two(x):\n    return _plain(x)\n"
    )
    code = (
        "import sys, torch\n"
        "from ftcore.compiler import CompilesLater, put_off_compiler\n"
        "from ftcore.lazily import put_off\n"
        "put_off_compiler()\n"
        "put_off('ft_test_compiles', CompilesLater)\n"
        "own = torch.compile\n"
        "import ft_test_compiles as found\n"
        "assert found.one.__doc__ == 'Doubled.' and torch.compile is own\n"
        "assert 'torch._dynamo.eval_frame' not in sys.modules\n"
        "assert [f(torch.tensor(3.0)).item() for f in (found.one, found.two, found.one)] == [6.0] * 3\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_transformers_lists_its_models_once() -> None:
    """The list is the one that it makes itself."""
    code = (
        "from ftcore.run import list_models_once\n"
        "from transformers.utils import import_utils\n"
        "own = import_utils.create_import_structure_from_path\n"
        "list_models_once()\n"
        "before = own.cache_info().misses\n"
        "import transformers.models as models\n"
        "assert own.cache_info().misses == before\n"
        "found = import_utils.define_import_structure(models.__file__)\n"
        "own.cache_clear()\n"
        "import_utils.create_import_structure_from_path = own\n"
        "assert found == import_utils.define_import_structure.__wrapped__(models.__file__)\n"
        "from transformers.models.llama import LlamaConfig\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
