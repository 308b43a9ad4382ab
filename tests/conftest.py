"""What all tests share: one thread a process, a data cache of their own, and the way to the real images."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts its threads; processes that tests start inherit it

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts us in the background has us ignore Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Tests are about the CPU, as `--device auto` is where there is no GPU, unless test_gpu.py is asked for by name."""
    if not any("test_gpu" in argument for argument in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Path]:
    """METAZOO_DATA for the session: one empty folder for all its processes; no test touches the user's own cache."""
    base = tmp_path_factory.getbasetemp()
    cache = (base if worker_id == "master" else base.parent) / "metazoo-data"
    cache.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAZOO_DATA", str(cache))
        yield cache


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real archives (CIFAR-FS, Omniglot), $METAZOO_REAL_DATA or ../shared/data; skips if absent."""
    folder = Path(os.environ.get("METAZOO_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; METAZOO_REAL_DATA names their folder")
    return folder
