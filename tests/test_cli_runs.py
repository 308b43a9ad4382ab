"""`metazoo train` and `metazoo evaluate` as a person meets them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_sets  # noqa: F401

from metazoo import __version__, cli, registry, training
from metazoo.cli.train import assign, merged
from metazoo.records import read
from metazoo.run import Run

SMALL = [
    *("--source", "tiny", "--ways", "3", "--queries", "3", "--backbone-set", "filters=4", "--set", "inner_steps=1"),
    *("--epochs", "2", "--iterations-per-epoch", "2", "--meta-batch", "2", "--validation-episodes", "4"),
]


@pytest.fixture(autouse=True)
def sets(tiny_sets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The tiny data sets are known to every test here, which runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def metazoo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command line in this process: exit status, stdout, stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metazoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return command


def only_run(home: str = "runs") -> Run:
    (folder,) = Path(home).iterdir()
    return Run.open(folder)


def test_the_version(metazoo: Any) -> None:
    assert metazoo("--version") == (0, f"metazoo {__version__}\n", "")


def test_from_training_to_a_table(metazoo: Any) -> None:
    status, out, err = metazoo("train", "maml", *SMALL)
    assert (status, err) == (0, "")
    run = only_run()
    assert f"{run.folder}: 2 epochs done, validation accuracy" in out
    assert run.provenance.command == "metazoo train maml " + " ".join(SMALL)
    following = re.search(r"Next: metazoo (.+)", out)
    assert following is not None
    status, out, err = metazoo(*following.group(1).split(), "--episodes", "20")
    assert (status, err) == (0, "")
    (record,) = read([run.records])
    assert record.command.startswith(f"metazoo evaluate {run.folder}") and record.episodes == 20
    assert "95 % over episodes" in out and "95 % over queries" in out and "20 episodes of 9 queries" in out
    for rule, title in (("last", "last epoch"), ("best", "best validation"), ("ensemble", "ensemble of the best")):
        accuracy = record.evaluations[rule].accuracy
        (line,) = [line for line in out.splitlines() if line.startswith(title)]
        percentages = [f"{value:.2%}" for value in (accuracy.mean, accuracy.over_episodes, accuracy.over_queries)]
        assert re.findall(r"[\d.]+%", line) == percentages
    status, out, _ = metazoo("evaluate", run.folder, "--episodes", "20", "--rule", "best")
    assert status == 0 and "best validation" in out and "last epoch" not in out
    assert len(read([run.records])) == 1


def test_a_config_file_and_options_beside_it(metazoo: Any) -> None:
    assert metazoo("train", "maml", *SMALL)[0] == 0
    first = only_run()
    # The run's own config is the same run, which is done.
    status, out, _ = metazoo("train", "--config", first.folder / "config.yaml")
    assert status == 0 and str(first.folder) in out and len(list(Path("runs").iterdir())) == 1
    changes = ("--seed", "1", "--set", "inner_lr.body=0.5", "--outer-lr", "0.01")
    assert metazoo("train", "--config", first.folder / "config.yaml", "--runs", "other", *changes)[0] == 0
    second = only_run("other").config
    expected = first.config.model_dump()
    expected["seed"] = 1
    expected["settings"]["inner_lr"]["body"] = 0.5
    expected["training"]["outer_lr"] = 0.01
    assert second.model_dump() == expected


def test_set_reads_yaml_and_dotted_keys() -> None:
    values: dict[str, Any] = {"rate": 1}
    for pair in ("rate=1e-2", "on=true", "lr.body=0.5", "roles=[a, b]", "name="):
        assign(values, pair, "--set", {"lr": {"body": 0.1, "head": 0.2}, "roles": []})
    assert values == {
        "rate": "1e-2",  # YAML 1.1 has no such number; the settings' types make it one
        "on": True,
        "lr": {"body": 0.5, "head": 0.2},
        "roles": ["a", "b"],
        "name": None,
    }
    read_in = registry.algorithm("maml").Settings.model_validate({"inner_lr": {"body": "1e-2"}})
    assert read_in.model_dump()["inner_lr"] == {"body": 0.01}


def test_what_is_not_given_leaves_what_is_there() -> None:
    base = {"ways": 5, "training": {"epochs": 3, "keep": 2}}
    given = {"ways": None, "shots": 1, "training": {"epochs": 4, "keep": None}, "backbone": {"name": None}}
    assert merged(base, given) == {"ways": 5, "shots": 1, "training": {"epochs": 4, "keep": 2}}
    assert base == {"ways": 5, "training": {"epochs": 3, "keep": 2}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "Name a method"),
        (["train", "maml"], "Name a data set: --source NAME"),
        (["train", "mmal", *SMALL], "did you mean 'maml'"),
        (["train", "maml", "--source", "tinny"], "did you mean 'tiny'"),
        (["train", "maml", *SMALL, "--set", "inner_stepz=1"], "did you mean 'inner_steps'"),
        (["train", "maml", *SMALL, "--set", "inner_steps"], "--set takes KEY=VALUE, not 'inner_steps'"),
        (["train", "maml", *SMALL, "--set", "inner_steps=[1"], "the value is not valid YAML"),
        (["train", "maml", *SMALL, "--backbone-set", "filtres=3"], "did you mean 'filters'"),
        (["train", "maml", *SMALL, "--epochs", "0"], "'training.epochs'"),
        (["train", "maml", *SMALL, "--ways", "17"], "The train split of tiny has 16 classes"),
        (["train", "maml", *SMALL, "--shots", "8"], "10 images"),
        (["train", "maml", *SMALL, "--device", "gpu"], "There is no device 'gpu'"),
        (["train", "--config", "nothing.yaml"], "There is no file nothing.yaml"),
        (["train", "--config", "bad.yaml"], "unknown key 'epochs'"),
        (["train", "maml", *SMALL, "--plugin", "nothing.py"], "There is no plugin file"),
        (["evaluate", "runs/nothing"], "runs/nothing does not exist"),
        (["evaluate", "."], "holds no run.json"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments: list[str], said: str, metazoo: Any) -> None:
    Path("bad.yaml").write_text("algorithm: maml\nsource: tiny\nepochs: 3\n")
    status, out, err = metazoo(*arguments)
    assert (status, out) == (2, "")
    assert said in err and err.startswith("metazoo: ") and err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_run_that_diverged_is_one_sentence_too(metazoo: Any) -> None:
    status, _, err = metazoo("train", "maml", *SMALL, "--outer-lr", "1e30")
    assert status == 2 and "diverged" in err and err.count("\n") == 1
    status, _, err = metazoo("evaluate", only_run().folder)
    assert status == 2 and "cannot be evaluated" in err


def test_a_folder_that_cannot_be_written_is_one_sentence_too(metazoo: Any) -> None:
    Path("runs").write_text("not a folder")
    status, _, err = metazoo("train", "maml", *SMALL)
    assert status == 2 and "could not be written" in err and err.count("\n") == 1


def test_plugins_can_be_trained_and_evaluated(metazoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry._catalogue(), "methods", registry.algorithms())  # the plugin is for this test only
    plugin = Path(__file__).with_name("noisy.py")
    status, out, _ = metazoo("train", "noisy", *SMALL, "--plugin", plugin)
    assert status == 0 and f"--plugin {plugin}" in out
    assert metazoo("evaluate", only_run().folder, "--episodes", "5", "--plugin", plugin)[0] == 0


def test_ctrl_c_exits_with_130_and_the_command_that_goes_on(metazoo: Any, tmp_path: Path) -> None:
    program = "import tiny; tiny.install(); from metazoo.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, "train", "maml", *SMALL, "--epochs", "2000", "--schedule", "cosine"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    deadline = time.monotonic() + 120
    while not list(Path("runs").glob("*/metrics.jsonl")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    run = only_run()
    assert run.state == "interrupted" and not (run.folder / "done").exists()
    resume = re.fullmatch(
        r"metazoo: Stopped after iteration \d+ and saved; go on with: metazoo (train --config .+)\n", err
    )
    assert resume is not None, err
    # It is the same run, from where it was.
    epochs = len(run.metrics)
    values = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert values["training"]["epochs"] == 2000 and epochs < 2000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "train", lambda self, stop: None)
        status, _, err = metazoo(*resume.group(1).split())
    assert status == 0, err
    assert only_run().folder == run.folder and len(run.metrics) == epochs
