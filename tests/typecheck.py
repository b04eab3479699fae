"""The run-time type checker that conftest.py applies to our packages."""

from beartype import BeartypeConf, beartype

# As in PEP 484, an int will do where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
