"""What several fault tests compare with."""

from pathlib import Path

import pytest

from tests.faults.jobs import EVALUATED, Job


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    job = Job(run_dir, *EVALUATED)
    assert job.ended() == 0, job.said()
    return run_dir
