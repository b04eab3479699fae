"""What a run begins with, and keeps a copy of."""

import errno
from pathlib import Path

import pytest

from janus_jax.processing.settings import ProcessorConfig
from tests.train.runs import tiny
from train.init import PROCESSOR, find_origin


def test_a_copy_that_was_cut_short_is_no_copy(debug_dir: Path, tmp_path: Path, monkeypatch):
    config = tiny("emoji-stage3", data=("packed",), init=(str(debug_dir),))
    write = Path.write_text

    def full(self: Path, text: str, **how):
        if PROCESSOR not in self.name:
            return write(self, text, **how)
        write(self, text[:20], **how)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            find_origin(config, tmp_path)
    want = ProcessorConfig.load(debug_dir / PROCESSOR)
    assert find_origin(config, tmp_path).processor == want
    # From the copy.
    assert ProcessorConfig.load(tmp_path / PROCESSOR) == want
