"""A query of the results store: which columns, of which rows.

In: names of columns, and values or a pyarrow expression. Out: a `Query`, checked against the schema.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from bench.results.schema import SCHEMA

Where: TypeAlias = dict[str, Any] | pc.Expression | None


@dataclass(frozen=True)
class Query:
    """What to read from each file.

    Attributes:
        wanted: the columns to return, in the order and with the types of `SCHEMA`.
        where: the condition that a row must meet; None takes every row.
        needed: the names of the columns that `where` looks at.
    """

    wanted: pa.Schema
    where: pc.Expression | None = None
    needed: frozenset[str] = frozenset()

    @property
    def read(self) -> pa.Schema:
        """The columns to read from a file: the wanted ones and those that `where` looks at."""
        names = {*self.wanted.names, *self.needed}
        return pa.schema([f for f in SCHEMA if f.name in names])  # in the order of the files' columns


def build_query(columns: Iterable[str] | None, where: Where) -> Query:
    """The query for these columns and this condition.

    Args:
        columns: the names of the wanted columns; None takes all.
        where: by column, a value, a list of values (any of which will do), or None for null; or an
            expression of pyarrow.

    Raises:
        ValueError: there is no such column, or a value does not have the column's type.
    """
    names = set(SCHEMA.names if columns is None else columns)
    filtered = set(where) if isinstance(where, dict) else set()
    for name in sorted(names | filtered):
        if name not in SCHEMA.names:
            raise ValueError(f"{name}: rows have no such column")
    wanted = pa.schema([f for f in SCHEMA if f.name in names], metadata=SCHEMA.metadata)
    if where is None or (isinstance(where, dict) and not where):
        return Query(wanted)
    if isinstance(where, dict):
        terms = [_condition(name, value) for name, value in where.items()]
        return Query(wanted, functools.reduce(operator.and_, terms), frozenset(filtered))
    SCHEMA.empty_table().filter(where)  # raises ValueError if a column or a type is wrong
    return Query(wanted, where, frozenset(SCHEMA.names))  # an expression does not list its columns


def _condition(name: str, value: Any) -> pc.Expression:
    """The expression for one column: equal to the value, one of the values, or null."""
    if value is None:
        return pc.field(name).is_null()
    kind = SCHEMA.field(name).type
    if isinstance(value, list | tuple | set | frozenset):
        return pc.field(name).isin(pa.array(list(value), kind))
    return pc.field(name) == pa.scalar(value, kind)
