import pytest

from .oracle import Pair, build


@pytest.fixture(scope="session", params=["tiny", pytest.param("wide", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest) -> Pair:
    return build(request.param)
