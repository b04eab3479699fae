"""The launch templates: their commands and flags exist, and status 75 starts a run again."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from janus_jax.cli.parsing import parse
from train.cli import Flags
from train.config import TrainConfig
from train.presets import PRESETS

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
SCRIPTS = ["slurm.sbatch", "tpu-vm.sh", "xpk.sh"]


def jobset() -> dict:
    return yaml.safe_load((LAUNCH / "gke-jobset.yaml").read_text())


def commands(path: Path) -> list[list[str]]:
    """The arguments of every `janus-jax` in a template."""
    if path.suffix == ".yaml":
        [slice_] = jobset()["spec"]["replicatedJobs"]
        [container] = slice_["template"]["spec"]["template"]["spec"]["containers"]
        return [container["command"]]
    text = "\n".join(
        line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")
    )
    found = re.findall(r'janus-jax (train [^"|\n]*)', text.replace("\\\n", ""))
    return [["janus-jax", *shlex.split(command)] for command in found if "--" in command]


def test_every_template_is_in_the_table_and_tested():
    names = {path.name for path in LAUNCH.iterdir()} - {"README.md"}
    assert names == {*SCRIPTS, "gke-jobset.yaml"}
    listed = set(re.findall(r"\]\(([\w.-]+)\)", (LAUNCH / "README.md").read_text()))
    assert listed >= names


@pytest.mark.parametrize("name", [*SCRIPTS, "gke-jobset.yaml"])
def test_commands_name_presets_and_flags_that_exist(name):
    found = commands(LAUNCH / name)
    assert found
    for program, command, preset, *rest in found:
        assert (program, command) == ("janus-jax", "train")
        parsed = parse_train(preset, rest)
        # It starts where there is nothing, and goes on where there is a checkpoint.
        assert parsed.resume
        assert parsed.run_dir is not None and parsed.run_dir.name == preset


def parse_train(preset: str, argv: list[str]) -> Flags:
    """As `janus-jax train` reads it, without running it."""
    from train import cli, loop

    assert preset in PRESETS
    seen: list[TrainConfig] = []
    flags: list[dict] = []

    def run(config, run_dir, **given):
        seen.append(config)
        flags.append({"run_dir": run_dir, **given})
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run", run)
        patch.setattr(cli, "connect", lambda hosts: None)
        assert cli.main([preset, *argv]) == 0
    assert seen[0].name == preset
    return Flags(run_dir=flags[0]["run_dir"], resume=flags[0]["resume"])


def test_flags_that_do_not_exist_would_be_found():
    with pytest.raises(ValueError, match="no-such-flag"):
        parse_train("emoji-vq", ["--no-such-flag", "1"])
    assert parse(Flags, ["--hosts.alone"], prog="x").hosts.alone


def test_the_readme_names_flags_that_exist():
    text = (LAUNCH / "README.md").read_text()
    for flag in re.findall(r"`?(--hosts\.[a-z-]+)", text):
        name = flag.removeprefix("--hosts.").replace("-", "_")
        assert hasattr(Flags().hosts, name), flag


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash_and_start_again_after_75(name):
    path = LAUNCH / name
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    assert re.search(r"-eq 75|--restart-on-exit-codes=75", text)
    assert text.startswith("#!/usr/bin/env bash\n# ")


def stand_in(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def run_script(
    tmp_path: Path, script: str, *args: str, **environ: str
) -> subprocess.CompletedProcess:
    """Runs a template where the services' programs are stand-ins."""
    text = (LAUNCH / script).read_text()
    copy = tmp_path / script
    copy.write_text(text.replace("SHARED=/shared/janus", f"SHARED={tmp_path}"))
    path = f"{tmp_path}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", copy, *args],
        cwd=tmp_path,
        env={"PATH": path, **environ},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_the_slurm_job_is_queued_again_after_75_only(tmp_path, status):
    stand_in(tmp_path, "srun", f"exit {status}")
    stand_in(tmp_path, "scontrol", 'echo "$@" >> requeued')
    done = run_script(tmp_path, "slurm.sbatch", SLURM_JOB_ID="17")
    assert done.returncode == status, done.stderr
    requeued = tmp_path / "requeued"
    assert (requeued.read_text() if requeued.exists() else "") == (
        "requeue 17\n" if status == 75 else ""
    )


@pytest.mark.parametrize(("statuses", "calls"), [([75, 75, 0], 3), ([75, 1], 2), ([0], 1)])
def test_the_tpu_vms_start_again_while_they_end_with_75(tmp_path, statuses, calls):
    script = f'echo "$@" >> called; n=$(wc -l < called); s=({" ".join(map(str, statuses))})'
    stand_in(tmp_path, "gcloud", script + '; exit "${s[n-1]}"')
    done = run_script(tmp_path, "tpu-vm.sh")
    assert done.returncode == statuses[-1], done.stderr
    lines = (tmp_path / "called").read_text().splitlines()
    assert len(lines) == calls
    assert all("--worker=all" in line and "janus-jax train" in line for line in lines)


def test_stop_asks_the_trainers_and_not_the_shell_it_runs_in(tmp_path):
    stand_in(tmp_path, "gcloud", 'echo "$@" > called')
    run_script(tmp_path, "tpu-vm.sh", "stop")
    command = (tmp_path / "called").read_text().partition("--command=")[2]
    [pattern] = re.findall(r'pkill -TERM -f "([^"]+)"', command)
    assert re.search(pattern, "venv/bin/python venv/bin/janus-jax train janus-pro-1b-stage2")
    assert not re.search(pattern, f"bash -c {command}")


def test_the_jobset_starts_again_after_75_without_counting():
    spec = jobset()["spec"]
    [rule] = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    [exits] = [r["onExitCodes"] for r in job["podFailurePolicy"]["rules"] if "onExitCodes" in r]
    assert exits["values"] == [75]
    pod = job["template"]["spec"]
    assert exits["containerName"] == pod["containers"][0]["name"]
    # A pod failure policy is allowed for pods that are never restarted alone.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    # 4x4x4 chips, four a host.
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    x, y, z = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["parallelism"] == job["completions"] == x * y * z // chips
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = pod["containers"][0]["volumeMounts"]
    assert {mount["name"] for mount in mounts} == volumes
    # The lengths of the samples are written beside them.
    claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"]]
    assert not any(found.get("readOnly") for found in (*mounts, *claims))
