"""Free memory, from files as the kernel writes them."""

from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from janus_jax import memory
from janus_jax.cli import doctor
from janus_jax.host_memory import HostMemory, host_memory

KB, GB = 1024, 2**30
UNLIMITED = 9223372036854771712


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def found(tmp_path: Path):
    """Writes the files of a host of 64 GB with 50 GB free, and reads them."""
    write(tmp_path / "meminfo", f"MemTotal: {64 * GB // KB} kB\nMemAvailable: {50 * GB // KB} kB\n")

    def read(cgroup: str = "", **files: str) -> HostMemory | None:
        write(tmp_path / "self" / "cgroup", cgroup)
        for name, text in files.items():
            write(tmp_path / "cgroup" / name, text)
        return host_memory(tmp_path, tmp_path / "cgroup")

    return read


def v2(group: str, most: int | str, used: int, files: int = 0) -> dict[str, str]:
    stat = f"anon 5\nfile 7\nactive_file {files // 2}\ninactive_file {files - files // 2}\n"
    names = {"memory.max": f"{most}\n", "memory.current": f"{used}\n", "memory.stat": stat}
    return {f"{group}{name}": text for name, text in names.items()}


def v1(group: str, most: int, used: int, files: int = 0) -> dict[str, str]:
    stat = f"active_file 1\ntotal_active_file 0\ntotal_inactive_file {files}\n"
    return {
        f"memory/{group}memory.limit_in_bytes": f"{most}\n",
        f"memory/{group}memory.usage_in_bytes": f"{used}\n",
        f"memory/{group}memory.stat": stat,
    }


def test_without_control_groups_it_is_what_the_system_says(found, tmp_path):
    assert found() == HostMemory(50 * GB, 64 * GB)
    (tmp_path / "self" / "cgroup").unlink()
    assert host_memory(tmp_path, tmp_path / "cgroup") == HostMemory(50 * GB, 64 * GB)
    assert host_memory(tmp_path / "no such place") is None


def test_a_container_has_what_its_limit_leaves(found):
    # Files that the kernel keeps at hand are given back when memory is wanted.
    files = v2("", 8 * GB, 6 * GB, 3 * GB)
    assert found("0::/\n", **files) == HostMemory(5 * GB, 8 * GB)
    assert found("0::/\n", **v2("", 8 * GB, 9 * GB)) == HostMemory(0, 8 * GB)
    assert found("0::/\n", **v2("", "max", 6 * GB)) == HostMemory(50 * GB, 64 * GB)


def test_the_least_limit_above_a_process_counts(found):
    files = v2("jobs/7/task/", "max", GB) | v2("jobs/7/", 16 * GB, 4 * GB)
    files |= v2("jobs/", 20 * GB, 19 * GB) | v2("other/", GB, 0)
    assert found("0::/jobs/7/task\n", **files) == HostMemory(GB, 16 * GB)


def test_the_older_kind_of_control_groups_counts_too(found):
    line = "4:cpu,memory:/docker/abc\n0::/\n"
    assert found(line, **v1("", UNLIMITED, 40 * GB)) == HostMemory(50 * GB, 64 * GB)
    # From within a container its own group is the top, whatever its path says.
    assert found(line, **v1("", 4 * GB, 3 * GB, GB)) == HostMemory(2 * GB, 4 * GB)
    assert found(line, **v1("docker/abc/", 2 * GB, GB)) == HostMemory(GB, 2 * GB)


def test_models_and_the_doctor_go_by_it(monkeypatch):
    given = HostMemory(2 * GB, 4 * GB)
    monkeypatch.delenv("JANUS_JAX_MEMORY_GB", raising=False)
    host = SimpleNamespace(memory_stats=lambda: None)
    monkeypatch.setattr(jax, "local_devices", lambda: [host])
    monkeypatch.setattr(memory, "host_memory", lambda: given)
    monkeypatch.setattr("janus_jax.host_memory.host_memory", lambda: given)
    assert memory.device_bytes() == int(2 * GB * memory.HEADROOM)
    assert doctor._memory() == ("ok", "2 of 4 GB free on the host")
