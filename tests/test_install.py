"""The wheel, the sdist and the editable install, each in a new environment, with the contrib packages beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from ftcore.api.registry import load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CONTRIB = sorted(path.parent for path in ROOT.glob("contrib/*/pyproject.toml"))


def command(*words: str | Path, cwd: Path) -> str:
    """Output of a command that sees neither this repository nor an inherited PYTHONPATH."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FT_DISABLE_PLUGINS")
    }
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Environment:
    """A new virtual environment that borrows torch and the other dependencies of the one that runs the tests."""

    def __init__(self, folder: Path) -> None:
        command(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        self.folder, self.bin = folder, folder / ("Scripts" if os.name == "nt" else "bin")
        purelib = command(
            self.bin / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
        )
        self.site = Path(purelib.strip())
        # A .pth file adds the folder alone: .pth files inside it, of editable installs for instance, are not followed.
        (self.site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, *what: str | Path) -> None:
        """pip from the outside; nothing is downloaded."""
        pip = (sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet", "--no-index")
        command(*pip, "--ignore-installed", "--no-deps", "--no-build-isolation", *what, cwd=self.folder)

    def file_of(self, module: str) -> Path:
        """Where a module comes from."""
        return Path(
            command(self.bin / "python", "-c", f"import {module}; print({module}.__file__)", cwd=self.folder).strip()
        )

    def components(self) -> dict[str, set[str]]:
        """Distribution -> kinds and full names of what it offers, as listed; nothing listed is broken."""
        listed = json.loads(command(self.bin / "ft", "plugins", "list", "--json", cwd=self.folder))
        assert {entry["full_name"]: entry["status"] for entry in listed if entry["status"] != "ok"} == {}
        offered: dict[str, set[str]] = {}
        for entry in listed:
            offered.setdefault(entry["distribution"], set()).add(f"{entry['kind']} {entry['full_name']}")
        return offered


def check_plugins(environment: Environment) -> None:
    """Every built-in that the tested environment has, and the packages beside them."""
    offered = environment.components()
    assert offered.pop("ft-smollm2") == {"model_family ft-smollm2:smollm2-135m"}
    assert offered.pop("ft-engine-vllm") == {"inference_engine ft-engine-vllm:vllm"}
    assert offered.pop("ft-template-plain") == {"chat_template ft-template-plain:plain-dialogue"}
    built_in = {
        f"{offer.component.kind} {offer.full_name}" for offer in load().offers if offer.distribution == "ftcore"
    }
    assert len(built_in) > 10
    assert {name for name in offered["ftcore"] if not name.startswith("plugin ")} == built_in


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


def sources() -> set[str]:
    """Every file of the two packages, as a wheel names it."""
    tracked = command(
        "git", "ls-files", "-co", "--exclude-standard", "ftcore", "plugins/ft_plugins", cwd=ROOT
    ).splitlines()
    return {name.removeprefix("plugins/") for name in tracked}


def test_wheel_holds_the_two_packages_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == sources()


def test_sdist_holds_what_it_is_built_and_read_from(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1].split("/")[0] for name in archive.getnames()}
    assert names == {
        *("ftcore", "plugins", "contrib", "docs", "examples", "tests", "pyproject.toml", "PKG-INFO", ".gitignore"),
        *("README.md", "README.zh.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt"),
    }


def test_wheel_in_a_new_environment(dist: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    environment.install(*dist.glob("*.whl"), *CONTRIB)
    assert environment.file_of("ftcore") == environment.site / "ftcore" / "__init__.py"
    assert environment.file_of("ft_plugins") == environment.site / "ft_plugins" / "__init__.py"
    assert environment.file_of("ft_smollm2") == environment.site / "ft_smollm2" / "__init__.py"
    check_plugins(environment)


def test_editable_in_a_new_environment(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    environment.install(*(word for package in (ROOT, *CONTRIB) for word in ("--editable", package)))
    assert environment.file_of("ftcore") == ROOT / "ftcore" / "__init__.py"
    assert environment.file_of("ft_plugins") == ROOT / "plugins" / "ft_plugins" / "__init__.py"
    assert environment.file_of("ft_template_plain") == ROOT / "contrib/ft-template-plain/ft_template_plain/__init__.py"
    check_plugins(environment)
