"""What is wanted of a results folder: which columns, of which rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from bench.results.schema import SCHEMA

Where: TypeAlias = dict[str, Any] | pc.Expression | None


@dataclass(frozen=True)
class Query:
    """What is wanted of each file.

    Attributes:
        wanted: the columns, in the order and with the types of `SCHEMA`.
        where: which rows; None is all of them.
        needed: the columns that `where` looks at.
    """

    wanted: pa.Schema
    where: pc.Expression | None = None
    needed: frozenset[str] = frozenset()

    @property
    def read(self) -> pa.Schema:
        """The columns that have to be read: the wanted ones, and those that `where` looks at."""
        names = {*self.wanted.names, *self.needed}
        return pa.schema([f for f in SCHEMA if f.name in names])  # in the order that files have


def build_query(columns: Iterable[str] | None, where: Where) -> Query:
    """A query in terms of columns' names.

    Args:
        columns: the wanted ones; None is all.
        where: a value for each column, or a list of values (any of them), None for null; or an expression.

    Raises:
        ValueError: there is no such column, or no such value in it.
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
        terms = [_term(name, value) for name, value in where.items()]
        expression = terms[0]
        for term in terms[1:]:
            expression = expression & term
        return Query(wanted, expression, frozenset(filtered))
    SCHEMA.empty_table().filter(where)  # raises if it makes no sense
    return Query(wanted, where, frozenset(SCHEMA.names))  # nothing tells what an expression looks at


def _term(name: str, value: Any) -> pc.Expression:
    if value is None:
        return pc.field(name).is_null()
    kind = SCHEMA.field(name).type
    if isinstance(value, list | tuple | set | frozenset):
        return pc.field(name).isin(pa.array(list(value), kind))
    return pc.field(name) == pa.scalar(value, kind)
