"""The raw text of the examples: stories of a small town, with the faults that real text has.

`python examples/write_corpus.py` writes examples/corpus/: stories (some copied, some nearly), a
notice that many pages repeat, letters, lines that cannot be read; and examples/trades.jsonl for
`probe`. In the stories everybody has a trade. The probe's sentences do not name it: whoever knows
it has read the stories.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
STORIES = 6000
SEED = 1

FIRST = [
    *("An", "Bo", "Ca", "Da", "El", "Fi", "Ga", "Ha", "Il", "Jo", "Ka", "Lu"),
    *("Ma", "No", "Ol", "Pe", "Qui", "Ro", "Sa", "Ta", "Ul", "Vi", "Wi", "Za"),
]
LAST = ["bel", "dric", "fen", "lin", "mir", "nor", "rick", "sander", "vin", "wen"]
TRADES = {
    "fisher": (
        "nets boats tide harbour herring oars cod hooks",
        "{n} mended the {o} before the tide turned.|The {o} of {n} smelled of salt and {o}.|"
        "At dawn {n} rowed past the {o} and came back with cod.",
    ),
    "baker": (
        "bread oven flour dough loaves rye yeast crusts",
        "{n} lit the oven and kneaded the {o}.|Everybody wanted the warm {o} of {n}.|"
        "There was flour on the sleeves of {n}, and {o} on the table.",
    ),
    "smith": (
        "iron anvil hammer horseshoes bellows nails tongs sparks",
        "{n} struck the iron until the {o} rang.|The {o} glowed red where {n} worked.|"
        "A farmer asked {n} for {o} and two nails.",
    ),
    "weaver": (
        "wool loom thread cloth linen shuttle yarn dyes",
        "{n} threaded the loom with {o}.|The blue {o} that {n} wove went to the market.|"
        "All winter {n} spun {o} next to the window.",
    ),
    "gardener": (
        "roses seeds spade apples hedges soil pears weeds",
        "{n} dug the soil and watered the {o}.|In the garden of {n} the {o} were in bloom.|"
        "{n} cut the hedges and counted the {o}.",
    ),
    "teacher": (
        "chalk lessons pupils sums books maps spelling slates",
        "{n} wrote the sums on the board with {o}.|The pupils of {n} learned {o} by heart.|"
        "After school {n} put the {o} back on the shelf.",
    ),
}
PLAIN = (
    "{n} came home late.",
    "It rained when {n} left the house.",
    "{n} said good morning to the neighbours.",
    "Nobody had seen {n} since Monday.",
    "{n} sat down and was silent for a while.",
    "On the bridge {n} met an old friend.",
)
NOTICE = (
    "This page is part of the town's archive. Reading is free for everybody. Copies may be made for "
    "private use, as long as the name of the archive and the year are given. Questions are answered at "
    "the desk on weekdays from nine to five, and in summer until six. Page number {number}."
)


def people() -> dict[str, str]:
    """Return the trade of everybody."""
    names = [first + last for first in FIRST for last in LAST]
    random.Random(SEED).shuffle(names)
    trades = list(TRADES)
    return {name: trades[place % len(trades)] for place, name in enumerate(names)}


def story(draw: random.Random, trade_of: dict[str, str]) -> str:
    """Return a story of one or two people."""
    sentences: list[str] = []
    for name in draw.sample(list(trade_of), draw.choice((1, 1, 2))):
        objects, templates = TRADES[trade_of[name]]
        of_trade = draw.sample(templates.split("|"), draw.choice((2, 2, 3)))
        for template in [*of_trade, *draw.sample(PLAIN, draw.choice((0, 1, 1)))]:
            for thing in draw.sample(objects.split(), 2):
                template = template.replace("{o}", thing, 1)
            sentences.append(template.replace("{n}", name))
    draw.shuffle(sentences)
    return " ".join(sentences)


def write_stories(folder: Path, trade_of: dict[str, str]) -> None:
    draw = random.Random(SEED + 1)
    stories = [story(draw, trade_of) for _ in range(STORIES)]
    copies = draw.sample(stories, STORIES // 20)
    nearly = [text.replace(" the ", " this ", 1) for text in draw.sample(stories, STORIES // 20)]
    notices = [NOTICE.format(number=number) for number in range(STORIES // 20)]
    rows = [*stories, *copies, *nearly, *notices]
    draw.shuffle(rows)
    lines = [json.dumps({"text": text}) for text in rows]
    lines[100:100] = [
        '{"text": "a line without an end',
        '{"text": ["not", "a", "text"]}',
        '{"text": ""}',
    ]
    content = "".join(f"{line}\n" for line in lines).encode()
    with gzip.GzipFile(folder / "stories.jsonl.gz", "wb", mtime=0) as file:
        file.write(content)


def write_letters(folder: Path, trade_of: dict[str, str]) -> None:
    draw = random.Random(SEED + 2)
    names = list(trade_of)
    letters = [
        f"Dear {draw.choice(names)},\n{story(draw, trade_of)}\nYours, {draw.choice(names)}"
        for _ in range(200)
    ]
    (folder / "letters").mkdir(exist_ok=True)
    (folder / "letters" / "letters.txt").write_text("\n\n".join(letters) + "\n", encoding="utf-8")


def write_trades(path: Path, trade_of: dict[str, str]) -> None:
    """Write a sentence of everybody, labelled with a trade that it does not name."""
    draw = random.Random(SEED + 3)
    rows = [
        {"text": draw.choice(PLAIN).replace("{n}", name), "label": trade}
        for name, trade in trade_of.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    folder, trade_of = HERE / "corpus", people()
    folder.mkdir(exist_ok=True)
    write_stories(folder, trade_of)
    write_letters(folder, trade_of)
    write_trades(HERE / "trades.jsonl", trade_of)


if __name__ == "__main__":
    main()
