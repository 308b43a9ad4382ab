"""Damaged data is refused in a sentence or harmless; and the harness that shows it would notice if it were not."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import pytest

from metazoo.benchmarks import data_damages, data_faults, data_forms
from metazoo.errors import UserError

FORMS = {form.name: form for form in data_forms.forms()}
DAMAGES = {damage.name: damage for damage in data_damages.DAMAGES}


def test_no_damage_ends_badly():
    found = data_faults.trials(60, seed=1)
    assert len(found) == 60
    assert [trial for trial in found if trial.outcome == data_faults.FAILURE] == []
    assert sum(trial.outcome == data_faults.REFUSED for trial in found) > 45


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_every_form_is_sound_before_it_is_damaged(form, tmp_path):
    assert data_faults.whole(form, tmp_path) == data_faults.whole(form, tmp_path / "again")


def trial(form: str, damage: str, folder: Path, seed: int = 0) -> data_faults.Trial:
    expected = data_faults.whole(FORMS[form], folder / "whole")
    found = data_faults.attempt(FORMS[form], DAMAGES[damage], random.Random(seed), folder / "damaged", expected)
    assert found is not None
    return found


def test_what_the_harness_must_notice(tmp_path, monkeypatch):
    def ended(outcome: str, detail: str, name: str) -> None:
        found = trial("miniImageNet, cached pickles", "hostile pickle", tmp_path / name)
        assert found.outcome == outcome and detail in found.detail, found

    pack = data_faults.pack

    def damaged(**options):
        """Only the damaged data is packed otherwise than it should be."""

        def packing(sheet, sources, home, workers):
            if "damaged" not in str(home):
                return pack(sheet, sources, home=home, workers=workers)
            options["does"](home)

        return packing

    def touches(home: Path) -> None:
        (home.parent / "canary" / "touched").touch()
        raise UserError("It is refused, but it ran.")

    def leaves(home: Path) -> None:
        (home / ".half.partial").mkdir(parents=True)
        raise UserError("It is refused, but something is left.")

    def crashes(home: Path) -> None:
        raise KeyError("image_data")

    def accepts(home: Path) -> None:
        home.mkdir()
        (home / "train.bin").write_bytes(b"other contents")

    ended(data_faults.REFUSED, "is not a pickle", "as it is")
    for does, detail in (
        (touches, "a program was run"),
        (leaves, "left behind: .half.partial"),
        (crashes, "KeyError"),
        (accepts, "accepted"),
    ):
        monkeypatch.setattr(data_faults, "pack", damaged(does=does))
        ended(data_faults.FAILURE, detail, does.__name__)


def test_a_hostile_pickle_is_one(tmp_path):
    canary = tmp_path / "touched"
    content = data_damages._hostile(pickle.dumps({"data": [1]}), random.Random(3), canary)
    pickle.loads(content)  # what nobody should do
    assert canary.exists()


def test_the_command_writes_its_tally(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        data_faults.main(["--count", "20", "--seed", "2", "--json", str(tmp_path / "tally.json")])
    assert ended.value.code == 0
    record = json.loads((tmp_path / "tally.json").read_text())
    assert record["inputs"] == 20 == sum(sum(row.values()) for row in record["by_form"].values())
    assert "FAILURE" not in capsys.readouterr().out
