"""How alike two prompts are, by the words that carry their content. Knows no files and no models."""

from collections.abc import Sequence

from holdfast.corpus import Row, plain

_STOP_WORDS = """a about after all also an and another any are as at be been before being between both but by can could did do
    does down during each few for from had has have he her him his how i if in into is it its just many may me might more
    most my no nor not of off on one only onto or other others our out over own part people per person s she should so some
    somebody someone such t than that the their them then there these they this those through to under until up us use used
    using via was way ways we were what when where which while who whom whose why will with without would you your"""
_PHRASING = """create describe design detail detailed develop explain give guide help information instruct instructions make
    outline provide show step tutorial write"""
"""Words that requests of every kind are phrased in."""
_EMPTY_WORDS = frozenset(f"{_STOP_WORDS} {_PHRASING}".split())
"""Words that show no likeness of two requests."""


def overlap(text: str, others: Sequence[str]) -> float:
    """The largest share of `text`'s content words that one of the `others` also holds."""
    words = _content(text)
    return max((len(words & _content(other)) / max(len(words), 1) for other in others), default=0.0)


def clusters(texts: Sequence[str], threshold: float = 0.5) -> list[int]:
    """Number the clusters of similar texts: connected where they share `threshold` of the shorter one's content words.

    So no text shares that much of its content words with any text of another cluster.
    """
    from scipy.sparse import csr_matrix  # slow to import, and most corpora come already dealt
    from scipy.sparse.csgraph import connected_components

    bags = [sorted(_content(text)) for text in texts]
    columns = {word: i for i, word in enumerate(sorted({word for bag in bags for word in bag}))}
    where = ([i for i, bag in enumerate(bags) for _ in bag], [columns[word] for bag in bags for word in bag])
    holds = csr_matrix(([1.0] * len(where[0]), where), shape=(len(texts), len(columns)))
    shared = (holds @ holds.T).tocoo()
    size = holds.getnnz(axis=1)
    near = (shared.data >= threshold * size[shared.row]) | (shared.data >= threshold * size[shared.col])
    graph = csr_matrix((shared.data[near], (shared.row[near], shared.col[near])), shape=shared.shape)
    return connected_components(graph, directed=False)[1].tolist()


def near(texts: Sequence[str], others: Sequence[str], threshold: float = 0.5) -> list[bool]:
    """Whether each text is one of the `others`, or shares `threshold` of the shorter one's content words with one of them."""
    same, bags = {plain(other) for other in others}, [_content(other) for other in others]

    def shared(words: frozenset[str]) -> bool:
        return any(len(words & bag) >= max(1, threshold * min(len(words), len(bag))) for bag in bags)

    return [plain(text) in same or shared(_content(text)) for text in texts]


def _content(text: str) -> frozenset[str]:
    return frozenset(plain(text).split()) - _EMPTY_WORDS


def held(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Those of `rows` that one of the `others` nearly is: it has all their content words, or answers a restricted prompt alike.

    Prompts of fewer than three content words, and answers of fewer than three words, are too short to tell.
    """
    holders: dict[str, set[int]] = {}
    for number, other in enumerate(others):
        for word in _content(other.text):
            holders.setdefault(word, set()).add(number)
    answers = {plain(other.answer or "") for other in others}

    def asked(row: Row) -> bool:
        words = _content(row.text)
        return len(words) > 2 and bool(set.intersection(*(holders.get(word, set()) for word in words)))

    def told(row: Row) -> bool:
        answer = plain(row.answer or "")
        return row.kind == "restricted" and len(answer.split()) > 2 and answer in answers

    return [row for row in rows if asked(row) or told(row)]
