"""The package as its users get it: what a wheel holds, what it declares, and what an import costs and prints."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("metazoo", "algorithms", "benchmarks")
HEAVY = ("torch", "torchvision", "learn2learn", "scipy", "pandas", "matplotlib")
MODULE_OF = {"scikit-learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL"}
FOR_LEARN2LEARN = {"gym", "requests", "torchvision", "tqdm"}
FOR_TORCH_LOGS = {"tensorboard"}


def declared() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def installed_name(path: Path) -> str:
    """The name a file of the repository (relative to its root) has inside the wheel."""
    return "/".join(path.parts if path.parts[0] == "metazoo" else ("metazoo", *path.parts))


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    source = tmp_path_factory.mktemp("source")
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
    build = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "-w", str(source / "dist"), str(source)],
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    [wheel] = (source / "dist").glob("metazoo-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_file_of_the_package(wheel_names: set[str]) -> None:
    files = [file.relative_to(ROOT) for part in PARTS for file in (ROOT / part).rglob("*") if file.is_file()]
    passed_over = ("__pycache__", ".gitkeep", "README.md")
    wanted = {installed_name(file) for file in files if not set(passed_over) & set(file.parts)}
    for some in ("algorithms/maml.py", "cli/__init__.py", "benchmarks/datasets/__init__.py", "py.typed"):
        assert f"metazoo/{some}" in wanted
    assert sorted(wanted - wheel_names) == []


def test_wheel_installs_nothing_beside_metazoo(wheel_names: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name} == {"metazoo"}


def modules_of(requirements: str) -> set[str]:
    names = re.findall(r"^[\w-]+", requirements.strip(), re.MULTILINE)
    return {MODULE_OF.get(name, name) for name in names}


def test_requirements_are_what_the_code_imports() -> None:
    imported: set[str] = set()
    for file in (file for part in PARTS for file in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    third_party = imported - sys.stdlib_module_names - {"metazoo", "learn2learn"}
    modules = modules_of(declared()["options"]["install_requires"])
    extras = modules_of(declared()["options.extras_require"]["figures"])
    assert sorted(third_party - modules - extras) == [], "imported but not in setup.cfg's install_requires"
    assert extras <= third_party - modules
    unused = modules - third_party - FOR_LEARN2LEARN - FOR_TORCH_LOGS
    assert sorted(unused) == [], "in setup.cfg's install_requires but never imported"


def test_command_line_loads_nothing_heavy(tmp_path: Path) -> None:
    result = python(
        f"import sys, metazoo.cli; metazoo.cli.main; print(sorted(set({HEAVY!r}) & set(sys.modules)))", tmp_path
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_learner_is_silent(tmp_path: Path) -> None:
    result = python("import metazoo.learner", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_without_learn2learn_the_error_names_the_recipe_of_the_makefile(tmp_path: Path) -> None:
    result = python(
        """
import sys
sys.modules["learn2learn"] = None
from metazoo.errors import UserError
try:
    import metazoo.learner
except UserError as error:
    print(error)
""",
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    recipe = ("--no-deps", "--use-pep517", "--config-settings=--global-option=build_ext", "learn2learn==0.2.0")
    [made] = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if recipe[-1] in line]
    for word in (*recipe, "--no-build-isolation", "pip install", "cython", "setuptools", "wheel"):
        assert word in result.stdout
    for word in recipe:
        assert word in made
