"""The run-time check of types in the tests: a whole number is a float too, as for every type checker (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
