"""A step that does not fit its devices: refused with numbers, before anything is allocated."""

import resource

from janus_jax.cli.main import run


def test_what_does_not_fit_is_refused_with_numbers_before_allocating(capsys):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    args = ["plan", "janus-pro-7b-stage2", "--topology", "v5e:4x4", "--accumulate", "16"]
    assert run([*args, "--mfu", "0.4", "--remat", "minimal"]) == 2
    out, err = capsys.readouterr()
    assert "156" not in out and "at 40% MFU" in out
    assert err.count("\n") == 1 and "v5e:4x4 needs about" in err and "it has 17.2 GB" in err
    # In KiB; the parameters alone would take 28 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
