"""Metrics in TensorBoard and csv files, and output on the terminal."""

import csv
import io
from pathlib import Path

import matplotlib.image
import pytest
import torch

from elc_bert.config.reader import load_config
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import open_segments
from elc_bert.engine.monitor import RunMonitor
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.optim import parameter_groups, schedule_factor
from elc_bert.utils.figures import draw_layer_weights
from tests.support.launching import Result, events, run, scalars

launcher = [pytest.mark.launcher, pytest.mark.timeout(120)]
STEPS = 20
CHANGES = {
    "csv_monitor": {"enabled": True},
    "model": {"variant": "weighted_output"},
    "training": {
        "max_steps": STEPS,
        "long_after": 0.5,
        "picture_every": 10,
        "log_every_tensor": True,
        "kernels": "plain",
    },
    "evaluation": {"every": 8, "sequences": 16},
}


@pytest.fixture(scope="module")
def finished(configure, tmp_path_factory) -> tuple[Path, Result]:
    """Output directory of a run on two ranks, and its terminal output."""
    config = configure(tmp_path_factory.mktemp("monitor"), **CHANGES)
    result = run("torchrun", 2, ["--deepspeed_config", config])
    assert result.status == 0, result.output
    return config.parent / "run", result


@pytest.fixture(scope="module")
def directory(finished) -> Path:
    return finished[0]


class TestScalars:
    pytestmark = launcher

    def test_every_step_is_logged_once(self, directory):
        for tag in ("train/loss", "train/accuracy", "train/gradient_norm", "throughput/mfu"):
            assert [event.step for event in events(directory).Scalars(tag)] == list(range(1, STEPS + 1))

    def test_loss_falls_from_the_logarithm_of_the_vocabulary(self, directory):
        curve = scalars(directory, "train/loss")
        assert curve[1] == pytest.approx(torch.log(torch.tensor(512.0)).item(), abs=0.3)
        assert curve[STEPS] < curve[1] - 0.3
        assert all(0 <= accuracy <= 1 for accuracy in scalars(directory, "train/accuracy").values())

    def test_logged_learning_rate_is_that_of_the_step(self, directory):
        factor = schedule_factor("Cosine", STEPS, warmup_proportion=0.1, min_factor=0.1)
        rates = scalars(directory, "train/learning_rate")
        assert rates == pytest.approx({step: 0.01 * factor(step - 1) for step in range(1, STEPS + 1)})
        assert rates[1] == 0
        assert rates[3] == pytest.approx(0.01)

    def test_sequence_length_norms_and_throughput_are_logged(self, directory):
        lengths = list(scalars(directory, "train/sequence_length").values())
        assert lengths == [32] * 10 + [128] * 10
        assert all(0 < norm < 100 for norm in scalars(directory, "train/gradient_norm").values())
        assert all(0 < mfu < 1.5 for mfu in scalars(directory, "throughput/mfu").values())
        assert all(rate > 0 for rate in scalars(directory, "throughput/tokens_per_second").values())
        assert set(scalars(directory, "train/skipped_steps").values()) == {0}

    def test_memory_and_data_wait_are_logged(self, directory):
        memory = list(scalars(directory, "memory/peak_gib").values())
        assert memory == sorted(memory)
        assert 0.1 < memory[-1] < 4
        assert all(0 < share < 1 for share in scalars(directory, "throughput/data_wait").values())

    def test_epochs_count_each_length_by_its_own_segments(self, directory):
        config = load_config(directory / "config.json")
        dataset = IndexedDataset(config.elc_bert.data.train[0].path)
        short, long = (len(open_segments(dataset, length)) for length in (32, 128))
        epochs = scalars(directory, "data/epochs")
        assert epochs[10] == pytest.approx(10 * 8 / short)
        assert epochs[STEPS] == pytest.approx(10 * 8 / short + 10 * 2 / long)

    def test_words_follow_from_real_tokens(self, directory):
        config = load_config(directory / "config.json")
        manifest = IndexedDataset(config.elc_bert.data.train[0].path).manifest
        words = list(scalars(directory, "data/words").values())
        assert words == sorted(words)
        # At most 8 x 32 tokens a step, of which a good part are real.
        most = STEPS * 8 * 32 * manifest.words / manifest.tokens
        assert most / 2 < words[-1] < most

    def test_held_out_loss_is_logged_when_due_and_at_the_end(self, directory):
        assert list(scalars(directory, "held_out/loss")) == [8, 16, STEPS]
        assert list(scalars(directory, "held_out/accuracy")) == [8, 16, STEPS]

    def test_layer_weights_are_shares(self, directory):
        tags = [tag for tag in events(directory).Tags()["scalars"] if tag.startswith("layer_weights/")]
        rows = {tag.rpartition("_from_")[0] for tag in tags}
        assert len(rows) == 3  # two layers and the output
        for row in rows:
            shares = [scalars(directory, tag) for tag in tags if tag.startswith(row)]
            assert list(shares[0]) == [1, 10, STEPS]
            for step in shares[0]:
                assert sum(share[step] for share in shares) == pytest.approx(1, abs=1e-6)

    def test_ratios_of_lamb_are_logged(self, directory):
        config = load_config(directory / "config.json")
        model = ElcBertForMaskedLM(config.elc_bert.model)
        names = {name for name, _ in model.named_parameters()}
        decaying, _ = (group["params"] for group in parameter_groups(model, 0.1))
        tags = set(events(directory).Tags()["scalars"])
        ratios = {tag.removeprefix("trust_ratio/") for tag in tags if tag.startswith("trust_ratio/")}
        assert ratios == {name for name, p in model.named_parameters() if any(p is d for d in decaying)}
        assert {tag.removeprefix("update_to_weight/") for tag in tags if tag.startswith("upd")} == names

        least, middle, most = (
            scalars(directory, f"lamb/trust_ratio_{kind}") for kind in ("min", "median", "max")
        )
        assert list(least) == list(range(1, STEPS + 1))
        assert all(0 < least[step] < middle[step] < most[step] for step in least)
        assert {scalars(directory, f"trust_ratio/{name}")[STEPS] for name in ratios} >= {
            least[STEPS],
            most[STEPS],
        }
        # LAMB moves every decaying tensor by the learning rate's share of its length.
        rates = scalars(directory, "train/learning_rate")
        moved = scalars(directory, f"update_to_weight/{min(ratios)}")
        assert moved == pytest.approx(rates, rel=1e-5)

    def test_the_csv_monitor_has_the_same_values(self, directory):
        files = list((directory / "csv_monitor").glob("*train_loss*.csv"))
        assert len(files) == 1
        rows = list(csv.reader(files[0].open()))[1:]
        found = {int(step): float(value) for step, value in rows}
        assert found == pytest.approx(scalars(directory, "train/loss"))


def test_tensorboard_drops_what_a_killed_process_logged_after_the_checkpoint(configure, tmp_path):
    config = load_config(configure(tmp_path))
    for start_step, steps in ((0, range(1, 6)), (3, [4])):
        monitor = RunMonitor(config, start_step)
        for step in steps:
            monitor.scalars(step, {"train/loss": 10 * start_step + step})
        monitor.close()
    assert scalars(tmp_path / "run", "train/loss") == {1: 1, 2: 2, 3: 3, 4: 34}


class TestPictures:
    @pytest.mark.launcher
    @pytest.mark.timeout(120)
    def test_the_heat_map_is_an_image(self, directory):
        pictures = events(directory).Images("layer_weights")
        assert [picture.step for picture in pictures] == [1, 10, STEPS]
        pixels = matplotlib.image.imread(io.BytesIO(pictures[-1].encoded_image_string), format="png")
        assert pixels.shape[:2] == (pictures[-1].height, pictures[-1].width)
        assert pixels.std() > 0

    def test_cells_of_the_heat_map_are_the_weights(self):
        weights = {"layer_01": torch.tensor([1.0]), "layer_02": torch.tensor([0.25, 0.75])}
        axes = draw_layer_weights(weights).axes[0]
        cells = axes.images[0].get_array()
        assert cells[0, 0] == 1.0
        assert list(cells[1]) == [0.25, 0.75]
        assert cells.mask[0, 1]  # a layer takes nothing from itself or later ones
        assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2"]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["emb", "1"]


class TestTerminal:
    pytestmark = launcher

    def test_the_start_table_is_shown_once_with_correct_values(self, finished):
        directory, result = finished
        config = load_config(directory / "config.json")
        parameters = ElcBertForMaskedLM(config.elc_bert.model).num_parameters()
        assert 10_000 < parameters < 100_000
        layout = "x 1 accumulation x 2 devices, 256 tokens a step"
        expected = {
            "model": f"ELC-BERT weighted_output, 2 layers x 24, {parameters / 1000:.3g}k parameters",
            "devices": "2 x CPU process",
            "precision": "fp32, ZeRO stage 0",
            "kernels": "plain definitions",
            "steps 1 to 10": f"8 sequences of 32 = 4 micro-batch {layout}",
            "steps 11 to 20": f"2 sequences of 128 = 1 micro-batch {layout}",
            "optimizer": "Lamb, peak learning rate 0.01, Cosine schedule",
            "output": str(directory),
        }
        masks = (
            "masks of 15 % of the tokens, seed 42, on at most 16 sequences of 32 tokens (reference segments)"
        )
        assert f"{masks}\n" in result.stdout
        for name, value in expected.items():
            lines = [line.split(None, len(name.split())) for line in result.stdout.splitlines()]
            found = [" ".join(line[-1:]) for line in lines if line[: len(name.split())] == name.split()]
            assert [text.strip() for text in found] == [value]

    def test_held_out_results_and_the_end_of_the_run_are_shown(self, finished):
        directory, result = finished
        last = scalars(directory, "held_out/loss")[STEPS]
        assert f"step {STEPS}: held-out loss {last:.4f}" in result.stdout
        assert f"{STEPS}/{STEPS}" in result.stderr
        assert "Warning" not in result.output
