"""Tests mirror the packages: tests/train tests `train`. Packages themselves, so that no folder here
shadows a package of the same name, and two test files may share a name."""
