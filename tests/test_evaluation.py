"""Evaluation: what each selection rule scores, with which intervals, on which data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import tiny_sets  # noqa: F401
from torch import Tensor
from torch.nn import functional as F

from metazoo import assembly, evaluation, hardware, records, training
from metazoo.algorithm import Algorithm, Outcome
from metazoo.algorithms.maml import MAML
from metazoo.config import resolve
from metazoo.data.inputs import ImageInputs
from metazoo.data.store import open_store
from metazoo.domains import Stream, open_domain
from metazoo.episodes import Episodes, EpisodeStream
from metazoo.errors import OutOfMemory, UserError
from metazoo.evaluation import episode_scores, evaluate, interval
from metazoo.files import write_text
from metazoo.outer_step import OuterStep
from metazoo.run import Run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def sets(tiny_sets: None) -> None:  # noqa: F811
    """The tiny data sets are known to every test here."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run of three epochs that keeps the two best."""
    return training.train(tiny.config(), home=tmp_path / "runs")


def tiny_stream(split: str = "test") -> Stream:
    config = resolve(tiny.config(), tiny.SIZE)
    domain = open_domain("tiny")
    return domain.episodes(config, split, 0, CPU, domain.inputs)


class Fixed(Algorithm):
    """Answers with `confidence` for the right class, or for the one after it."""

    def __init__(self, confidence: float, right: bool):
        super().__init__(None)
        self.confidence, self.shift = confidence, int(not right)
        self.calls: list[int] = []

    def learn(self, episodes: Episodes, outer: OuterStep = OuterStep()) -> Outcome:
        raise AssertionError("evaluation does not train")

    def predict(self, episodes: Episodes) -> Tensor:
        self.calls.append(len(episodes))
        return self.confidence * F.one_hot((episodes.query_y + self.shift) % 3, 3).float()


def test_the_ensemble_averages_logits_not_probabilities_or_votes() -> None:
    sure, doubtful, other = Fixed(10.0, right=True), Fixed(2.0, right=False), Fixed(2.0, right=False)
    stack = torch.stack([model.predict(tiny_stream().batch(0, 1)) for model in (sure, doubtful, other)])
    # The case is one in which probabilities and votes would both decide for the wrong class.
    assert (stack.softmax(-1).mean(0).argmax(-1) != stack.mean(0).argmax(-1)).all()
    correct = episode_scores({"three": [sure, doubtful, other], "two": [doubtful, other]}, tiny_stream(), 5, CPU)
    assert correct == {"three": [9] * 5, "two": [0] * 5}


def test_a_model_in_several_committees_adapts_once() -> None:
    model, other = Fixed(1.0, right=True), Fixed(1.0, right=True)
    episode_scores({"last": [model], "best": [model], "ensemble": [model, other]}, tiny_stream(), 7, CPU)
    assert sum(model.calls) == sum(other.calls) == 7


def test_each_rule_scores_the_checkpoints_that_validation_chose(run: Run) -> None:
    by_validation = sorted(run.metrics, key=lambda line: (-line["validation_accuracy"], line["epoch"]))
    best = [line["epoch"] for line in by_validation[:2]]
    record = evaluate(run, episodes=10)
    assert {rule: result.epochs for rule, result in record.evaluations.items()} == {
        "last": [3],
        "best": best[:1],
        "ensemble": best,
    }
    # Each by hand, from the files.
    index = run.checkpoints.index
    assert index.last is not None
    logits = {}
    for entry in (index.last, *index.best):
        model = assembly.build(run.config, run.provenance.inputs)
        model.load_state_dict(run.checkpoints.load(entry)["model"])
        logits[entry.epoch] = model.predict(tiny_stream().batch(0, 10))
    labels = tiny_stream().batch(0, 10).query_y
    for result in record.evaluations.values():
        mean = sum(logits[epoch] for epoch in result.epochs)
        assert isinstance(mean, Tensor)
        assert (mean.argmax(-1) == labels).sum(-1).tolist() == result.correct


def test_the_record_says_all(run: Run) -> None:
    record = evaluate(run, episodes=12, command="metazoo evaluate it")
    assert (record.run, record.status, record.target, record.split) == (run.name, "done", "tiny", "test")
    assert (record.episodes, record.episode_seed, record.queries_per_episode) == (12, 0, 9)
    assert record.data == {"source": run.data, "target": run.data} and record.code == run.code
    assert record.config == run.config.model_dump(mode="json") and record.command == "metazoo evaluate it"
    assert record.parameters == 515 and "batch statistics" in record.batch_norm
    assert record.training_seconds > 0 and record.tasks_per_second > 0 and record.peak_memory_mb > 0
    for result in record.evaluations.values():
        assert len(result.correct) == 12 and result.accuracy.mean == pytest.approx(sum(result.correct) / 108)
    assert records.read([run.records]) == [record]


def test_an_evaluation_that_is_there_is_used_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    last = evaluate(run, episodes=5, rules=["last"])
    everything = evaluate(run, episodes=5)
    assert set(last.evaluations) == {"last"} and set(everything.evaluations) == set(evaluation.RULES)
    assert everything.evaluations["last"] == last.evaluations["last"]
    other_list = evaluate(run, episodes=5, episode_seed=1)
    assert other_list.evaluations != everything.evaluations
    monkeypatch.setattr(evaluation, "episode_scores", None)
    assert evaluate(run, episodes=5) == everything and evaluate(run, episodes=5, rules=["best"]) == everything
    assert evaluate(run, episodes=5, episode_seed=1) == other_list
    for asked in ({"episodes": 6}, {"episodes": 5, "target": "tiny_rgb"}, {"episodes": 5, "episode_seed": 2}):
        with pytest.raises((TypeError, UserError)):
            evaluate(run, **asked)
    assert len(records.read([run.records])) == 3


def test_tasks_per_pass_and_the_callers_random_numbers_change_nothing(run: Run) -> None:
    results = []
    for tasks_per_pass in (None, 1, 2, 7, 100):
        torch.manual_seed(tasks_per_pass or 0)
        before = torch.get_rng_state()
        results.append(evaluate(run, episodes=40, tasks_per_pass=tasks_per_pass).evaluations)
        assert torch.equal(before, torch.get_rng_state())
        run.records.unlink()
    assert all(result == results[0] for result in results)


def test_the_test_episodes_are_the_same_for_every_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    batch = EpisodeStream.batch

    def watched(self: EpisodeStream, start: int, count: int) -> Episodes:
        episodes = batch(self, start, count)
        seen[-1].append((self.sampler.split.name, episodes.support_x, episodes.query_y))
        return episodes

    longer = training.train(tiny.config(epochs=4, seed=3, algorithm="anil"), home=tmp_path / "other")
    monkeypatch.setattr(EpisodeStream, "batch", watched)
    for subject in (run, longer):
        seen.append([])
        evaluate(subject, episodes=20)
    assert len(seen[0]) == len(seen[1]) == 2
    for (split, support, labels), (other_split, other_support, other_labels) in zip(*seen, strict=True):
        assert split == other_split == "test"
        assert torch.equal(support, other_support) and torch.equal(labels, other_labels)


def counts(total: int, episodes: int = 600) -> list[int]:
    """Correct predictions, `total` in all, spread over the episodes."""
    return [total // episodes + (episode < total % episodes) for episode in range(episodes)]


@pytest.mark.parametrize(("accuracy", "half_width"), [(0.6982, 0.4241), (0.5180, 0.4617)])
def test_the_interval_over_queries_is_the_one_that_cxgrad_prints(accuracy: float, half_width: float) -> None:
    scored = interval(counts(round(accuracy * 45_000)), 75)
    assert scored.mean == pytest.approx(accuracy, abs=1e-12)
    assert round(100 * scored.over_queries, 4) == half_width


def test_the_interval_over_episodes_is_students() -> None:
    # Four episodes: mean 0.5, standard deviation 0.2582, t(0.975, 3) = 3.1824.
    scored = interval([2, 4, 6, 8], 10)
    assert scored.over_episodes == pytest.approx(3.182446305 * 0.2581988897 / 2, rel=1e-9)
    assert scored.over_queries == pytest.approx(1.96 * 0.5 / 40**0.5, rel=1e-12)


def test_a_gpus_passes_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Fixed):
        def predict(self, episodes: Episodes) -> Tensor:
            if len(episodes) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().predict(episodes)

    monkeypatch.setattr(hardware, "tasks_at_once", lambda asked, device, automatic, network: asked or 32)
    large = Large(1.0, right=True)
    assert episode_scores({"it": [large]}, tiny_stream(), 20, CPU) == {"it": [9] * 20}
    assert max(large.calls) == 2
    with pytest.raises(torch.OutOfMemoryError):
        episode_scores({"it": [large]}, tiny_stream(), 20, CPU, tasks_per_pass=8)


def test_out_of_memory_in_evaluation_says_what_to_lower(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: MAML, episodes: Episodes) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(MAML, "predict", full)
    with pytest.raises(OutOfMemory, match="lower tasks_per_pass"):
        evaluate(run, episodes=5)


def test_a_run_on_colour_is_tested_on_grey_images_repeated(tmp_path: Path) -> None:
    config = tiny.config(source="tiny_rgb", normalisation="source")
    run = training.train(config, home=tmp_path)
    record = evaluate(run, "tiny", episodes=5)
    assert record.target == "tiny" and record.data["target"] != record.data["source"]
    inputs = run.provenance.inputs
    assert isinstance(inputs, ImageInputs)
    mean, std = inputs.mean, inputs.std
    assert len(set(mean)) == 3
    grey = open_domain("tiny").episodes(run.config, "test", 0, CPU, inputs).batch(0, 2)
    plain = tiny_stream().batch(0, 2)
    for channel in range(3):
        expected = (plain.query_x[:, :, 0] - mean[channel]) / std[channel]
        torch.testing.assert_close(grey.query_x[:, :, channel], expected)


def test_a_run_on_grey_is_not_tested_on_colour(run: Run) -> None:
    with pytest.raises(UserError, match=r"grey images .* in colour"):
        evaluate(run, "tiny_rgb", episodes=5)


def test_other_sets_are_standardised_by_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training.train(tiny.config(normalisation="source"), home=tmp_path)
    store = open_store("tiny")
    assert run.provenance.inputs == open_domain("tiny").inputs
    seen = []
    batch = EpisodeStream.batch
    monkeypatch.setattr(
        EpisodeStream, "batch", lambda self, start, count: (seen.append(batch(self, start, count)), seen[-1])[1]
    )
    evaluate(run, episodes=5)
    raw = batch(tiny_stream(), 0, 5)
    expected = (raw.query_x - store.manifest.mean[0]) / store.manifest.std[0]
    torch.testing.assert_close(seen[0].query_x, expected)


def test_what_cannot_be_evaluated_is_a_sentence(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, said in (
        ({"target": "tinny"}, "did you mean 'tiny'"),
        ({"rules": ["bets"]}, "did you mean 'best'"),
        ({"episodes": 1}, "at least 2 episodes"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate(run, **asked)
    index = run.checkpoints.index
    path = run.checkpoints.folder / index.best[0].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        evaluate(run, episodes=5)
    path.write_bytes(whole)
    (run.folder / "done").unlink()
    with pytest.raises(UserError, match=r"is not finished; go on with: metazoo train"):
        evaluate(run, episodes=5)
    run.mark("diverged", "The loss was not a number.")
    with pytest.raises(UserError, match=r"cannot be evaluated. The loss was not a number"):
        evaluate(run, episodes=5)


def test_a_data_set_that_changed_since_the_training_is_refused(run: Run, tmp_path: Path) -> None:
    manifest = open_store("tiny").manifest
    changed = tmp_path / "data" / f"tiny-{tiny.SIZE}"
    changed.mkdir(parents=True)
    for name in ("train", "val", "test"):
        (changed / f"{name}.bin").write_bytes(open_store("tiny").file(name).read_bytes())
    write_text(changed / "manifest.json", replace(manifest, mean=(0.1,)).to_json())
    with pytest.raises(UserError, match=r"is not the one that .* was trained on"):
        evaluate(run, episodes=5, data_home=tmp_path / "data")


def test_code_that_changed_since_the_training_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from metazoo.progress import Message, Reporter

    said = []

    class Listening(Reporter):
        def send(self, message: Message) -> None:
            said.append(message.text)

    evaluate(run, episodes=5, reporter=Listening())
    assert not any(said)
    monkeypatch.setattr(evaluation, "code_version", lambda method: "0.1.0+new")
    record = evaluate(run, episodes=5, reporter=Listening())
    assert record.code == "0.1.0+new" and any("trained with the code" in text for text in said)
