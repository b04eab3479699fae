"""A run that hangs: the watchdog says where, and ends it for a scheduler to start again."""

from tests.faults.jobs import Job, go_on_to_the_end


def test_a_step_that_hangs_is_reported_with_all_stacks_and_can_end_the_run(whole, tmp_path):
    run_dir = tmp_path / "run"
    watched = ("--watch.watchdog-seconds", "2", "--watch.watchdog-ends")
    job = Job(run_dir, "--checkpoint-every", "2", *watched, at="data wait")
    assert job.ended() == 1, job.said()
    assert "watchdog: no step has ended for 2 s after step 2; stacks:" in job.said()
    stacks = (run_dir / "stacks.txt").read_text()
    assert stacks in job.said()
    # The main thread waits for a batch, and the thread that should read it sleeps.
    assert 'train/loop.py", line' in stacks and "in train" in stacks and "in _wait" in stacks
    said = go_on_to_the_end(run_dir, whole, "--checkpoint-every", "2")
    assert "resumed from step 2" in said
