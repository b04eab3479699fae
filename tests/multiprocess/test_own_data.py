"""Somebody's own files, where several processes train: one packs them, all train on them."""

import numpy as np

from tests.multiprocess.members import Members
from tests.train.data.records.files import picture, turns, write_jsonl
from tests.train.runs import checkpoint, metrics
from train.rundir import read_json

FLAGS = "--steps 2 --batch-size 6 --log-every 1 --preview-every 0 --checkpoint-every 2"


def test_processes_pack_and_train_as_one_alone(tmp_path, debug_dir):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    captions = [{"image": f"{i}.png", "caption": f"apple {i}"} for i in range(8)]
    texts = [{"turns": turns(i)} for i in range(4)]
    data = write_jsonl(tmp_path / "mine.jsonl", [*captions, *texts])
    runs, read = [], []
    for processes in (1, 2):
        run_dir = tmp_path / f"run{processes}"
        where = ["--init", str(debug_dir), "--data", str(data), "--run-dir", str(run_dir)]
        argv = ["finetune", *where, "--mesh", "fsdp=2", *FLAGS.split()]
        members = Members(argv, tmp_path / f"logs{processes}", processes, 2 // processes)
        assert members.ended() == [0] * processes, members.said()
        # What is packed is told once.
        said = "\n".join(members.said())
        assert said.count("finetune: training: ") == 1, said
        runs.append(run_dir)
        read.append(
            [sorted(set(ids.replace(str(run_dir), "").splitlines())) for ids in members.samples()]
        )
    one, two = runs
    shards = [sorted(p.relative_to(run) for p in run.rglob("*.array_record")) for run in runs]
    assert shards[0] == shards[1] and shards[0]
    assert all((one / p).read_bytes() == (two / p).read_bytes() for p in shards[0])
    settings = [read_json(run / "config.json") for run in runs]
    assert settings[0]["data_digests"] == settings[1]["data_digests"]
    # All know the same samples of every step, of which each reads its own rows.
    assert read[0][0] and read == [read[0], read[0] * 2]
    for ours, theirs in zip(metrics(one), metrics(two), strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    first, second = checkpoint(one, 2), checkpoint(two, 2)
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=1e-4, atol=1e-6, err_msg=name)
