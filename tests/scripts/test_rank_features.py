"""scripts/rank_features.py on files and on a run of two steps."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from worldmodel.monitors import LDARank, RankMe, lda_rank
from worldmodel.training.metrics import read_metrics


@pytest.fixture
def rank(script, tmp_path):
    """Runs the command with arguments; the figure and the numbers go to the test's folder."""
    module = script("rank_features")
    fixed = [
        "--out",
        str(tmp_path / "spectrum.png"),
        "--json",
        str(tmp_path / "rows.json"),
        "--device",
        "cpu",
    ]

    def run(*arguments):
        module.main([*fixed, *map(str, arguments)])
        return json.loads((tmp_path / "rows.json").read_text())["rows"]

    return run


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_files_of_samples_and_of_views(tmp_path, rank, capsys):
    samples, views = normal(640, 16), normal(50, 1, 8) + 0.3 * normal(50, 4, 8, seed=1)
    np.save(tmp_path / "samples.npy", samples)
    save_file({"views": views, "other": samples}, tmp_path / "both.safetensors")
    rows = rank(tmp_path / "samples.npy", tmp_path / "both.safetensors", "--key", "views")
    monitor = RankMe()
    monitor.update(samples)
    for name, value in monitor.summary().as_dict().items():
        assert rows[0][name] == pytest.approx(value, rel=1e-9)
    assert (rows[0]["count"], rows[0]["dim"], rows[0]["lda_rank"], rows[0]["warning"]) == (640, 16, None, "")
    assert rows[0]["eigenvalues"] == pytest.approx(monitor.summary().eigenvalues.tolist())

    discriminant = LDARank()
    discriminant.update(views)
    assert (rows[1]["count"], rows[1]["dim"]) == (200, 8)
    assert rows[1]["lda_rank"] == pytest.approx(lda_rank(views), rel=1e-9)
    assert rows[1]["lda_signal"] == pytest.approx(discriminant.compute().signal, rel=1e-9)

    text = capsys.readouterr().out.splitlines()
    assert text[0].split()[:4] == ["input", "N", "K", "RankMe"]
    assert text[1].split()[1:4] == ["640", "16", f"{rows[0]['rankme']:.2f}"]
    assert text[1].endswith("-  " + "-".rjust(len("LDA signal")))
    assert f"{rows[1]['lda_rank']:.2f}" in text[2]
    assert text[-1] == f"spectrum: {tmp_path / 'spectrum.png'}"
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")


def test_the_result_says_where_it_comes_from(tmp_path, rank):
    np.save(tmp_path / "a.npy", normal(20, 2))
    rank(tmp_path / "a.npy")
    result = json.loads((tmp_path / "rows.json").read_text())
    assert {"command", "commit", "date", "machine", "torch"} <= result.keys()


def test_too_few_samples_and_what_is_undefined(tmp_path, rank, capsys):
    np.save(tmp_path / "few.npy", normal(30, 8)[:, None])  # one view of each: no discriminant
    (row,) = rank(tmp_path / "few.npy")
    assert (row["count"], row["lda_rank"]) == (30, None)
    assert (
        "few.npy: 30 samples of 8 dimensions: ranks read low, use at least 80 samples"
        in capsys.readouterr().out
    )
    np.save(tmp_path / "constant.npy", np.ones((30, 2)))
    (row,) = rank(tmp_path / "constant.npy")
    assert (row["rankme"], row["rankme_centered"], row["alpha_req"]) == (pytest.approx(1), 1, None)
    np.save(tmp_path / "one.npy", normal(1, 3, 4))  # views of one sample: no discriminant either
    assert rank(tmp_path / "one.npy")[0]["lda_rank"] is None


def test_a_run_reads_as_its_own_monitors_did(tiny_run, rank):
    """Trained and untrained encoder; the same numbers as in metrics.jsonl at the run's end and start."""
    trained, untrained = rank(tiny_run)
    logged = [row for row in read_metrics(tiny_run / "metrics.jsonl") if "heldout/rankme" in row]
    for row, entry in ((trained, logged[-1]), (untrained, logged[0])):
        for name in ("rankme", "rankme_centered", "participation_ratio", "lda_rank", "lda_signal"):
            assert row[name] == pytest.approx(entry[f"heldout/{name}"], rel=1e-6)
    assert trained["input"] == str(tiny_run)
    assert untrained["input"] == f"{tiny_run}, untrained"
    assert trained["rankme"] != pytest.approx(untrained["rankme"], rel=1e-6)


def test_a_checkpoint_and_data_from_elsewhere(tiny_run, tmp_path, rank):
    moved = shutil.copytree(tiny_run.parent / "clouds", tmp_path / "moved")
    run = shutil.copytree(tiny_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["root"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    early, untrained = rank(run / "checkpoints/step_00000001", "--data", moved)
    late, same = rank(tiny_run)
    assert untrained["rankme"] == same["rankme"]
    assert early["rankme"] != late["rankme"]


def fails(capsys, rank, *arguments):
    with pytest.raises(SystemExit) as stop:
        rank(*arguments)
    assert stop.value.code not in (0, None)
    return f"{stop.value.code} {capsys.readouterr().err}"


def test_errors_are_one_line(tiny_run, tmp_path, rank, capsys):
    assert "error: " + str(tmp_path / "a.npy") + ": no such file" in fails(capsys, rank, tmp_path / "a.npy")
    (tmp_path / "a.csv").write_text("1,2")
    assert "ends in .npy" in fails(capsys, rank, tmp_path / "a.csv")
    assert "no such file or run folder" in fails(capsys, rank, tmp_path / "no_run")
    assert "holds no checkpoint: name a run folder" in fails(capsys, rank, tmp_path)
    np.save(tmp_path / "a.npy", np.full((3, 2), np.nan))
    assert "row 0 (counted from 0) holds NaN" in fails(capsys, rank, tmp_path / "a.npy")
    assert "--out is a .png file" in fails(capsys, rank, tmp_path / "a.npy", "--out", "a.pdf")
    assert "required: INPUT" in fails(capsys, rank)


def test_a_wide_file_and_a_device_that_is_not_there(tmp_path, rank, capsys):
    np.save(tmp_path / "wide.npy", np.zeros((2, 30_000), np.float16))
    assert "project the features to 20000 dimensions" in fails(capsys, rank, tmp_path / "wide.npy")
    assert "--device is auto, cpu or cuda" in fails(capsys, rank, tmp_path / "wide.npy", "--device", "tpu")
    if not torch.cuda.is_available():
        assert "use --device cpu" in fails(capsys, rank, tmp_path / "wide.npy", "--device", "cuda")


def test_too_few_samples_are_warned_about(tmp_path, rank, capsys):
    np.save(tmp_path / "few.npy", normal(20, 50, 64))
    rank(tmp_path / "few.npy")
    assert "20 groups of 64 dimensions" in capsys.readouterr().out


def test_a_run_without_held_out_frames(tiny_run, tmp_path, rank, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["trainer"]["heldout_frames"] = 0
    (run / "config.json").write_text(json.dumps(config))
    assert "held no frames out" in fails(capsys, rank, run)


def test_a_checkpoint_of_another_model(tiny_run, tmp_path, rank, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["model"]["widths"] = [8, 16, 32, 16]
    (run / "config.json").write_text(json.dumps(config))
    assert "does not fit the model" in fails(capsys, rank, run)


def test_help_names_every_option(rank, capsys):
    with pytest.raises(SystemExit) as stop:
        rank("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{option}" in text for option in ("key", "out", "json", "data", "device"))
