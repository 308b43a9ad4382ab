"""What is printed of a leaderboard: its tables, notes and facts as text, before any file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metazoo.data.dataset import dataset
from metazoo.domains import baseline
from metazoo.leaderboard.facts import RULES, backbone_text, facts, pixels_text, settings_text, training_text
from metazoo.leaderboard.published import MEANINGS
from metazoo.leaderboard.standings import Beside, Leaderboard
from metazoo.leaderboard.suite import Column, Row, Suite
from metazoo.leaks import leak_text

NOTHING = "-"


@dataclass(frozen=True)
class Entry:
    """One place of a table: its text, whether it is in bold, and the numbers of the notes it refers to."""

    text: str
    bold: bool = False
    notes: tuple[int, ...] = ()
    value: float | None = None
    """The number that the text shows, by which a column is sorted."""


@dataclass(frozen=True)
class Table:
    """A table of text. `align` has one letter a column, l or r."""

    title: str
    header: tuple[str, ...]
    align: str
    rows: Sequence[Sequence[Entry]]
    prose: bool = False
    """Its columns hold sentences, which are for reading rather than for a paper."""


@dataclass(frozen=True)
class Document:
    """All that is printed of a leaderboard. The first table is the leaderboard itself."""

    title: str
    about: str
    tables: Sequence[Table]
    notes: Sequence[str]
    facts: Mapping[str, str]


@dataclass
class Notes:
    """Numbered notes: a text that comes twice has one number."""

    texts: list[str] = field(default_factory=list)

    def add(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def compose(board: Leaderboard) -> Document:
    """Everything that is printed of a leaderboard."""
    notes = Notes()
    tables = [_main(board, notes), _published(board), _by_rule(board), _spreads(board), _cost(board), _settings(board)]
    filled = [table for table in tables if table is not None]
    return Document(board.suite.title, board.suite.about, filled, notes.texts, facts(board))


def heading(suite: Suite, column: Column) -> str:
    """What a column is called: `CIFAR-FS 1-shot`, or `CIFAR-FS → Omniglot 1-shot` across domains."""
    crossed = f"{dataset(suite.source).title} → " if column.target != suite.source else ""
    return f"{crossed}{dataset(column.target).title} {column.shots}-shot"


def without_learning(suite: Suite, column: Column) -> tuple[str, float]:
    """What one reaches in a column without learning anything: how, and the result."""
    return baseline(column.target, suite.ways, column.shots, suite.evaluation.episodes, suite.evaluation.seed)


def measured(suite: Suite) -> str:
    """What is measured of which episodes: `Accuracy in %, 5-way`."""
    ways = suite.sheet.ways_text(suite.ways)
    return sentence_case(suite.measure.heading) + (ways and f", {ways}")


def sentence_case(text: str) -> str:
    """The same text for the beginning of a sentence."""
    return text[0].upper() + text[1:]


def _main(board: Leaderboard, notes: Notes) -> Table:
    suite = board.suite
    known = {column: any(board.beside[row.label, column] for row in suite.rows) for column in suite.columns}
    header, align = ["Method"], "l"
    for column in suite.columns:
        header += [heading(suite, column), "rank", *(["published"] if known[column] else [])]
        align += "rrr" if known[column] else "rr"
    rows = []
    for row in suite.rows:
        entries = [Entry(row.label)]
        for column in suite.columns:
            entries += _result(board, row, column, notes)
            if known[column]:
                entries.append(_beside(board.beside[row.label, column], notes))
        rows.append(entries)
    reached = {column: without_learning(suite, column) for column in suite.columns}
    lowest = [Entry(reached[suite.columns[0]][0])]
    for column, (_, value) in reached.items():
        lowest += [Entry(suite.measure.cell(value), value=value), *[Entry(NOTHING)] * (2 if known[column] else 1)]
    rows.append(lowest)
    rules = {cell.rule for cell in board.cells.values()}
    rule = RULES[next(iter(rules))] if len(rules) == 1 else "selection rule of each method as stated below"
    title = f"{measured(suite)}, ± half-width of its {board.over.title}; {rule}; {suite.protocol} protocol"
    return Table(title, tuple(header), align, rows)


def _result(board: Leaderboard, row: Row, column: Column, notes: Notes) -> list[Entry]:
    """A cell's result and rank, or why there is none."""
    cell, standing = board.cells[row.label, column], board.standings.get((row.label, column))
    result, marks = cell.result(), []
    if cell.departures and result:
        marks.append(notes.add(f"Made with other {' and '.join(cell.departures)} than is here now."))
    if result is None:
        if cell.reasons:
            marks.append(notes.add(f"{row.label}: {'; '.join(cell.reasons)}"))
        return [Entry(cell.status if cell.status != "done" else "missing", notes=tuple(marks)), Entry(NOTHING)]
    if cell.leak:
        marks.append(notes.add(leak_text(cell.leak, board.suite.source, column.target)))
    if len(cell.measured) < len(cell.seeds):
        reasons = f" ({'; '.join(cell.reasons)})" if cell.reasons else ""
        marks.append(notes.add(f"{row.label}: {len(cell.measured)} of {len(cell.seeds)} seeds{reasons}."))
    if standing is None:
        marks.append(notes.add("Tested on other images than the rest of its column, so not compared with it."))
    best = standing is not None and standing.best
    rank = Entry(str(standing.rank), value=standing.rank.first) if standing else Entry(NOTHING)
    return [Entry(board.suite.measure.cell(*result), best, tuple(marks), result[0]), rank]


def _beside(beside: Sequence[Beside], notes: Notes) -> Entry:
    """The published number that is nearest in protocol, with the difference where the protocol is the same."""
    if not beside:
        return Entry(NOTHING)
    first = beside[0]
    value = f"{first.number.value:.2f}"
    if first.difference is not None:
        return Entry(f"{value} ({first.difference:+.2f})", value=first.number.value)
    if first.departures is not None and not first.departures:
        return Entry(value, value=first.number.value)
    differs = "Protocol differs, or is not stated: not to be compared. The table of published numbers says how."
    return Entry(value, notes=(notes.add(differs),), value=first.number.value)


def _published(board: Leaderboard) -> Table | None:
    rows = []
    for (label, column), found in board.beside.items():
        result = board.cells[label, column].result()
        for beside in found:
            number = beside.number
            spread = f"{number.interval:.2f}, {MEANINGS[number.meaning]}" if number.interval else "none printed"
            texts = [
                label,
                heading(board.suite, column),
                board.suite.measure.cell(result[0]) if result else NOTHING,
                f"{number.value:.2f}" if number.label == label else f"{number.value:.2f} ({number.label})",
                spread,
                f"{beside.difference:+.2f}" if beside.difference is not None else NOTHING,
                _protocol(beside),
                f"{number.cited}. {number.notes}".strip(),
            ]
            rows.append([Entry(text) for text in texts])
    if not rows:
        return None
    header = ("Method", "column", "measured", "published", "its ±", "difference", "protocol", "source")
    return Table("Published numbers", header, "llrrlrll", rows, prose=True)


def _protocol(beside: Beside) -> str:
    if beside.departures is None:
        return "not stated"
    if not beside.departures:
        return "the same"
    more = f" and {len(beside.departures) - 4} more" if len(beside.departures) > 4 else ""
    return f"protocol differs: {', '.join(beside.departures[:4])}{more}"


def _by_rule(board: Leaderboard) -> Table | None:
    """Every selection rule side by side."""
    suite = board.suite
    rules = suite.evaluation.rules
    if len(rules) == 1 or not board.measured:
        return None
    header = ["Method", *[f"{heading(suite, column)}, {rule}" for column in suite.columns for rule in rules]]
    rows = []
    for row in suite.rows:
        results = [board.cells[row.label, column].result(rule) for column in suite.columns for rule in rules]
        texts = [suite.measure.cell(*result) if result else NOTHING for result in results]
        rows.append([Entry(row.label), *map(Entry, texts)])
    title = f"{sentence_case(suite.measure.heading)} by selection rule, ± half-width of its {board.over.title}"
    return Table(title, tuple(header), _align(header), rows)


def _spreads(board: Leaderboard) -> Table | None:
    """The other two readings of ±, each in columns of its own."""
    if not board.measured:
        return None
    suite, text = board.suite, board.suite.measure.cell
    seeds = len(suite.seeds) > 1
    queries = any(cell.over_queries is not None for cell in board.cells.values())
    header = ["Method"]
    for column in suite.columns:
        name = heading(suite, column)
        header += [f"{name}, ± over queries"] * queries
        header += [f"{name}, SD over seeds", f"{name}, SD of training"] * seeds
    if len(header) == 1:
        return None
    rows = []
    for row in suite.rows:
        entries = [Entry(row.label)]
        for column in suite.columns:
            cell = board.cells[row.label, column]
            result = cell.result()
            if queries:
                entries.append(Entry(text(result[0], cell.over_queries) if result else NOTHING))
            if seeds:
                found = (cell.over_seeds, cell.of_training)
                entries += [Entry(NOTHING if deviation is None else text(deviation)) for deviation in found]
        rows.append(entries)
    title = f"Standard deviation over seeds of the {suite.measure.title}"
    if queries:
        title = "The same accuracies in % with the binomial interval over query predictions, as CxGrad's code prints it"
    return Table(title, tuple(header), _align(header), rows)


def _cost(board: Leaderboard) -> Table | None:
    if not board.measured:
        return None
    header = ("Method", "meta-parameters", "training", "tasks/s", "peak memory")
    rows = []
    for row in board.suite.rows:
        for shots in board.suite.shots:
            cells = [board.cells[row.label, column] for column in board.suite.columns if column.shots == shots]
            measured = next((cell.measured for cell in cells if cell.measured), [])
            if measured:
                keys = ("parameters", "training_seconds", "tasks_per_second", "peak_memory_mb")
                values = [sum(getattr(record, key) for record in measured) / len(measured) for key in keys]
                label = row.label if len(board.suite.shots) == 1 else f"{row.label}, {shots}-shot"
                forms = ("{:,.0f}".format, duration, "{:.1f}".format, "{:,.0f} MiB".format)
                entries = [Entry(form(value), value=value) for form, value in zip(forms, values, strict=True)]
                rows.append([Entry(label), *entries])
    return Table("Cost of one training", header, "lrrrr", rows)


def _settings(board: Leaderboard) -> Table:
    """What methods differ in: their settings, and in the as-published protocol everything else as well."""
    suite = board.suite
    own = suite.protocol != "common"
    header = ("Method", "settings", *(("backbone", "pixels", "training", "rule") if own else ()))
    rows = []
    for row in suite.rows:
        config = next(iter(row.configs.values()))
        texts = [row.label, settings_text(config.settings)]
        if own:
            texts += [backbone_text(config), pixels_text(config), training_text(row, suite), RULES[row.rule]]
        rows.append([Entry(text) for text in texts])
    return Table("Settings", header, "l" * len(header), rows, prose=True)


def duration(seconds: float) -> str:
    """Seconds as one says them: `1 h 05 min`, `3 min 20 s`, `45 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _align(header: Sequence[str]) -> str:
    return "l" + "r" * (len(header) - 1)
