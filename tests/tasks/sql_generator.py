"""Seeded MySQL statements over the table of a record, for comparisons of the two backends of DBBench."""

# ruff: noqa: E501
from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["statements"]

WORDS = ("", "a", "x y", "10", "2", "-3", "1.5", "0", "Été", "ann", "2020-02-29", "12abc", "%", "1e3")


class _Writer:
    def __init__(self, rng: random.Random, table: str, columns: Sequence[str], cells: Sequence[str]) -> None:
        self.rng, self.cells = rng, [cell for cell in cells if cell] or ["a"]
        self.table, self.columns = self.name(table), list(columns)

    def name(self, text: str) -> str:
        return "`" + text.replace("`", "``") + "`"

    def column(self) -> str:
        return self.name(self.rng.choice(self.columns))

    def text(self) -> str:
        value = self.rng.choice(self.cells) if self.rng.random() < 0.7 else self.rng.choice(WORDS)
        if self.rng.random() < 0.2:
            value = value.swapcase()
        return "'" + value.replace("\\", "\\\\").replace("'", self.rng.choice(("''", "\\'"))) + "'"

    def number(self) -> str:
        return self.rng.choice(("0", "1", "2", "3", "10", "-1", "1.5", "0.25", "100", "2012", "1e2"))

    def value(self, depth: int = 2) -> str:
        """An expression without aggregates."""
        rng, kind = self.rng, self.rng.randrange(30 if depth else 6)
        sub = lambda: self.value(depth - 1)  # noqa: E731
        if kind < 4:
            return self.column()
        if kind == 4:
            return self.text()
        if kind == 5:
            return self.number()
        if kind < 9:
            return f"({sub()} {rng.choice('+-*/%')} {sub()})"
        if kind == 9:
            return f"({sub()} DIV {self.number()})"
        if kind < 12:
            name = rng.choice(
                ("UPPER", "LOWER", "LENGTH", "CHAR_LENGTH", "TRIM", "REVERSE", "LTRIM", "HEX", "MD5", "ASCII", "QUOTE")
            )
            return f"{name}({sub()})"
        if kind < 14:
            return f"{rng.choice(('ABS', 'CEIL', 'FLOOR', 'ROUND', 'SIGN', 'SQRT'))}({sub()})"
        if kind == 14:
            return f"{rng.choice(('ROUND', 'TRUNCATE'))}({sub()}, {rng.choice('012')})"
        if kind == 15:
            return f"CONCAT({sub()}, {sub()})"
        if kind == 16:
            return f"CONCAT_WS({self.text()}, {sub()}, NULL, {sub()})"
        if kind == 17:
            return f"{rng.choice(('LEFT', 'RIGHT', 'SUBSTRING', 'REPEAT'))}({sub()}, {rng.choice('0123')})"
        if kind == 18:
            return f"SUBSTRING_INDEX({sub()}, {rng.choice((chr(39) + ' ' + chr(39), self.text()))}, {rng.choice(('1', '2', '-1'))})"
        if kind == 19:
            return f"REPLACE({sub()}, {self.text()}, {self.text()})"
        if kind == 20:
            return f"{rng.choice(('IFNULL', 'NULLIF', 'GREATEST', 'LEAST', 'COALESCE'))}({sub()}, {sub()})"
        if kind == 21:
            return f"IF({self.test(depth - 1)}, {sub()}, {sub()})"
        if kind == 22:
            return f"CASE WHEN {self.test(depth - 1)} THEN {sub()} ELSE {sub()} END"
        if kind == 23:
            target = rng.choice(("SIGNED", "DECIMAL(10,2)", "CHAR", "CHAR(3)", "DOUBLE", "DATE", "DECIMAL(20,4)"))
            return f"CAST({sub()} AS {target})"
        if kind == 24:
            return f"{rng.choice(('INSTR', 'STRCMP', 'FIND_IN_SET'))}({sub()}, {self.text()})"
        if kind == 25:
            return f"{rng.choice(('LPAD', 'RPAD'))}({sub()}, {rng.choice('258')}, '*')"
        if kind == 26:
            return f"{rng.choice(('YEAR', 'MONTH', 'DAYNAME', 'LAST_DAY', 'DAYOFYEAR'))}({rng.choice((self.column(), chr(39) + '2021-03-31' + chr(39)))})"
        if kind == 27:
            return f"DATE_ADD('2020-01-31', INTERVAL {rng.choice('123')} {rng.choice(('DAY', 'MONTH', 'YEAR'))})"
        if kind == 28:
            return f"FIELD({sub()}, {self.text()}, {self.text()})"
        return f"({self.test(depth - 1)})"

    def test(self, depth: int = 2) -> str:
        rng, kind = self.rng, self.rng.randrange(14 if depth else 7)
        if kind < 3:
            right = self.text() if rng.random() < 0.6 else self.number()
            return f"{self.column()} {rng.choice(('=', '<>', '<', '>', '<=', '>=', '<=>'))} {right}"
        if kind == 3:
            return f"{self.column()} LIKE {self.pattern()}"
        if kind == 4:
            return f"{self.column()} {rng.choice(('', 'NOT '))}IN ({self.text()}, {self.text() if rng.random() < 0.7 else self.number()})"
        if kind == 5:
            return (
                f"{self.column()} BETWEEN {self.text()} AND {self.text()}"
                if rng.random() < 0.5
                else f"{self.column()} IS NOT NULL"
            )
        if kind == 6:
            return f"{self.column()} {rng.choice(('', 'NOT '))}REGEXP {rng.choice((chr(39) + '^[a-m]' + chr(39), chr(39) + '[0-9]+$' + chr(39)))}"
        if kind < 11:
            return f"{self.value(depth - 1)} {rng.choice(('=', '<>', '<', '>', '<=', '>='))} {self.value(depth - 1)}"
        if kind == 11:
            return f"NOT {self.test(depth - 1)}"
        return f"({self.test(depth - 1)} {rng.choice(('AND', 'OR', 'XOR'))} {self.test(depth - 1)})"

    def pattern(self) -> str:
        value = self.rng.choice(self.cells)
        cut = value[: self.rng.randint(1, 4)]
        shown = self.rng.choice((f"{cut}%", f"%{value[-3:]}", f"%{cut}%", f"_{value[1:]}"))
        return "'" + shown.replace("\\", "\\\\").replace("'", "''") + "'"

    def aggregate(self) -> str:
        rng = self.rng
        inner = self.column() if rng.random() < 0.7 else self.value(1)
        if rng.random() < 0.2:
            order = rng.choice(("", f" ORDER BY {self.column()}{rng.choice((' DESC', ''))}"))
            return f"GROUP_CONCAT({rng.choice(('', 'DISTINCT '))}{inner}{order} SEPARATOR '|')"
        name = rng.choice(("COUNT", "SUM", "AVG", "MIN", "MAX", "COUNT", "COUNT(DISTINCT", "STD"))
        return (
            "COUNT(*)" if name == "COUNT" and rng.random() < 0.5 else f"{name} {inner})" if "(" in name else f"{name}({inner})"
        )

    def where(self) -> str:
        return f" WHERE {self.test()}" if self.rng.random() < 0.6 else ""

    def ordered(self, *first: str) -> str:
        """An order that leaves no ties between rows that differ."""
        rest = [self.name(column) for column in self.columns]
        listed = [f"{one}{self.rng.choice((' DESC', '', ' ASC'))}" for one in (*first, *rest)]
        limit = self.rng.choice(("", f" LIMIT {self.rng.randint(0, 5)}", " LIMIT 2, 3", " LIMIT 3 OFFSET 1"))
        return f" ORDER BY {', '.join(listed)}{limit}"

    def select(self) -> str:
        rng, kind = self.rng, self.rng.randrange(10)
        if kind < 4:
            shown = ", ".join(self.value() for _ in range(rng.randint(1, 3))) if rng.random() < 0.8 else "*"
            order = self.ordered(self.value(1)) if rng.random() < 0.5 else ""
            return f"SELECT {shown} FROM {self.table}{self.where()}{order}"
        if kind == 4:
            return f"SELECT {', '.join(self.aggregate() for _ in range(rng.randint(1, 3)))} FROM {self.table}{self.where()}"
        if kind < 7:
            group = self.column()
            having = rng.choice(("", " HAVING COUNT(*) > 1", f" HAVING MIN({self.column()}) < {self.text()}"))
            order = rng.choice(
                (
                    "",
                    f" ORDER BY {group} DESC",
                    " ORDER BY COUNT(*) DESC LIMIT 2",
                    f" ORDER BY LENGTH({group})",
                    " ORDER BY 2 LIMIT 3",
                )
            )
            return f"SELECT {group}, {self.aggregate()} AS outcome_ FROM {self.table}{self.where()} GROUP BY {group}{having}{order}"
        if kind == 7:
            column = self.column()
            inner = rng.choice(("MAX", "MIN"))
            if rng.random() < 0.5:
                return f"SELECT {self.column()} FROM {self.table} WHERE {column} = (SELECT {inner}({column}) FROM {self.table})"
            return f"SELECT {self.column()} FROM {self.table} WHERE {column} IN (SELECT {column} FROM {self.table}{self.where()}){self.ordered()}"
        if kind == 8:
            column = self.column()
            join = rng.choice(("JOIN", "LEFT JOIN"))
            return (
                f"SELECT COUNT(*), MIN(a.{self.column()}) FROM {self.table} a {join} {self.table} b ON a.{column} = b.{column}"
            )
        if rng.random() < 0.5:
            return f"SELECT DISTINCT {self.column()} FROM {self.table}{self.where()}"
        both = (
            f"SELECT {self.column()} FROM {self.table} UNION {rng.choice(('', 'ALL '))}SELECT {self.value(1)} FROM {self.table}"
        )
        return f"SELECT COUNT(*) FROM ({both}) AS x" if rng.random() < 0.3 else both

    def change(self) -> str:
        rng, kind = self.rng, self.rng.randrange(5)
        if kind < 2:
            pairs = ", ".join(f"{self.column()} = {self.value(1)}" for _ in range(rng.randint(1, 2)))
            return f"UPDATE {self.table} SET {pairs}{self.where()}"
        if kind == 2:
            return f"DELETE FROM {self.table} WHERE {self.test()}"
        if kind == 3:
            cells = ", ".join(
                rng.choice((self.text(), self.number(), "NULL", f"CONCAT({self.text()}, 1)")) for _ in self.columns
            )
            return f"INSERT INTO {self.table} VALUES ({cells})"
        names = ", ".join(self.name(column) for column in self.columns[:2])
        values = ", ".join([f"CONCAT({self.value(1)}, {self.column()})" for _ in self.columns[:2]])
        return f"INSERT INTO {self.table} ({names}) SELECT {values} FROM {self.table}{self.where()}"


def statements(seed: int, table: str, columns: Sequence[str], rows: Sequence[Sequence[str]], count: int) -> list[str]:
    """Random statements over a table, three quarters of them queries.

    Args:
        seed: the seed.
        table: name of the table.
        columns: names of its columns.
        rows: its cells.
        count: number of statements.
    """
    rng = random.Random(f"{seed} {table}")
    writer = _Writer(rng, table, columns, [cell for row in rows for cell in row])
    return [writer.select() if rng.random() < 0.75 else writer.change() for _ in range(count)]
