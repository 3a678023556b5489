"""Draws the call graphs of operators and distillers for docs/operators.md: ``python tests/call_graphs.py``.

A graph is that of a rollout by the real operators on the scripted policy of the tests. A test compares them.
"""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fakes import Reply, Request, ScriptedPolicy, boxed, operator, roll

from rollout.operators import AgreementOptions, SelectionOptions
from rollout.records import Rollout

FOLDER = Path(__file__).parents[1] / "docs" / "img" / "graphs"
COLUMN, LINE, WIDTH, HEIGHT, MARGIN = 124, 34, 72, 24, 6
"""Distances of boxes, sizes of a box and the margin, in pixels."""
COLOURS = {
    "trace": ("#2ca02c", "#5fd35f"),
    "draft": ("#1f77b4", "#6db3e8"),
    "refine": ("#2ca02c", "#5fd35f"),
    "distil": ("#c75b00", "#ff9d45"),
    "verify": ("#777777", "#aaaaaa"),
    "analyse": ("#777777", "#aaaaaa"),
    "select": ("#9467bd", "#c5a3e0"),
}
"""Role -> colour of its boxes on a light and on a dark page."""


def _script(request: Request, rng: random.Random) -> Reply | str:
    """Answers that never agree, matches that the first solution wins, summaries that can be used."""
    if request.kind == "SELECT":
        return r"<think>hm</think>\boxed{1}"
    if request.kind in ("DISTIL", "UPDATE", "ANALYSE"):
        return "<think>hm</think>a summary"
    return boxed(request, rng)


@cache
def rollouts() -> dict[str, Rollout]:
    """Returns a rollout for each picture, by the name of its file."""
    made = {
        "trace": operator((1,), name="trace"),
        "sr": operator((1, 1, 1), name="sr"),
        "sr_error_analysis": operator((1, 1, 1), name="sr", error_analysis=True),
        "pdr": operator((4, 1), "all"),
        "pdr_4_2_1": operator((4, 2, 1), "all"),
        "shared_topk": operator((4, 2, 1), "shared_topk", top_k=2),
        "per_sample_topk": operator((4, 2, 1), "per_sample_topk", top_k=2),
        "random_k": operator((4, 2, 1), "random_k", top_k=2),
        "global_summary": operator((4, 2, 1), "global_summary"),
        "recursive_summary": operator((4, 2, 1), "recursive_summary"),
        "majority": operator((4,), name="majority"),
        "best_of_n": operator((4,), name="best_of_n"),
        "genselect": operator((4,), name="genselect"),
        "tournament": operator((4,), name="genselect", selection=SelectionOptions(match_size=2)),
        "adaptive": operator((3, 1), "all", name="adaptive", agreement=AgreementOptions(max_drafts=6)),
    }
    return {name: roll(ScriptedPolicy(script=_script), each) for name, each in made.items()}


def _columns(rollout: Rollout) -> list[int]:
    """The column of each call: one after those of the calls that it reads."""
    columns: list[int] = []
    for call in rollout.calls:
        columns.append(1 + max((columns[parent] for parent in call.parents), default=-1))
    return columns


def _places(rollout: Rollout) -> list[tuple[float, float]]:
    """The left upper corner of each call's box. A column is centred and ordered by what its calls read."""
    columns = _columns(rollout)
    tallest = max(columns.count(column) for column in columns)
    places: dict[int, tuple[float, float]] = {}
    for column in sorted(set(columns)):
        calls = [call for call, of in enumerate(columns) if of == column]
        heights = {call: [places[parent][1] for parent in rollout.calls[call].parents] for call in calls}
        calls.sort(key=lambda call: sum(heights[call]) / max(1, len(heights[call])))
        for line, call in enumerate(calls):
            shift = (tallest - len(calls)) / 2
            places[call] = (MARGIN + column * COLUMN, MARGIN + (line + shift) * LINE)
    return [places[call] for call in range(len(columns))]


def _styles(dark: bool) -> str:
    roles = " ".join(f".{role} {{ stroke: {pair[dark]} }}" for role, pair in COLOURS.items())
    paper, ink, line = ("#1e2129", "#eee", "#999") if dark else ("#fff", "#222", "#888")
    return (
        f"rect {{ fill: {paper} }} text {{ fill: {ink} }} path {{ stroke: {line} }} "
        f"marker path {{ fill: {line} }} {roles}"
    )


def _shapes(rollout: Rollout) -> Iterator[str]:
    places = _places(rollout)
    for place, call in enumerate(rollout.calls):
        x, y = places[place]
        for parent in sorted(set(call.parents)):
            from_x, from_y = places[parent][0] + WIDTH, places[parent][1] + HEIGHT / 2
            bend = (x - from_x) / 2
            yield (
                f'<path d="M{from_x:g} {from_y:g}C{from_x + bend:g} {from_y:g} {x - bend:g} '
                f'{y + HEIGHT / 2:g} {x - 1:g} {y + HEIGHT / 2:g}" marker-end="url(#a)"/>'
            )
    for place, call in enumerate(rollout.calls):
        x, y = places[place]
        width = 4 if place in rollout.answers else 1.5
        yield (
            f'<rect class="{call.role}" x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" '
            f'stroke-width="{width}"/>'
        )
        yield f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}">{call.role}</text>'


def described(rollout: Rollout) -> str:
    """Returns the graph in words: each call with the numbers of the calls that it reads."""
    return "; ".join(
        f"{place} {call.role}"
        + (f" reads {', '.join(map(str, sorted(set(call.parents))))}" * bool(call.parents))
        for place, call in enumerate(rollout.calls)
    )


def draw(rollout: Rollout) -> str:
    """Returns the graph as a self-contained SVG; answers have a thick border."""
    places = _places(rollout)
    width = max(x for x, _ in places) + WIDTH + MARGIN
    height = max(y for _, y in places) + HEIGHT + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" font-family="system-ui, sans-serif" font-size="14">',
            f"<title>Call graph: {described(rollout)}</title>",
            "<style>text { text-anchor: middle } path { fill: none; stroke-width: 1.2 } "
            f"marker path {{ stroke: none }} {_styles(dark=False)} "
            f"@media (prefers-color-scheme: dark) {{ {_styles(dark=True)} }}</style>",
            '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
            'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
            *_shapes(rollout),
            "</svg>\n",
        ]
    )


def main() -> None:
    """Writes all pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, rollout in rollouts().items():
        (FOLDER / f"{name}.svg").write_text(draw(rollout), encoding="utf-8")


if __name__ == "__main__":
    main()
