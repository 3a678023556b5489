"""Cases of reasoning-gym families: right answers in other writings, wrong permutations, near misses."""

import contextlib
import itertools
import random
import re
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass

_FAMILIES_TEXT = """
ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation
binary_matrix bitwise_arithmetic caesar_cipher calendar_arithmetic chain_sum circuit_logic coin_flip
color_cube_rotation complex_arithmetic count_bits count_primes course_schedule cryptarithm
decimal_arithmetic decimal_chain_sum dice emoji_mystery family_relationships figlet_font
fraction_simplification game_of_life_halting gcd gsm_symbolic isomorphic_strings largest_island lcm
leg_counting letter_counting letter_jumble list_functions mahjong_puzzle manipulate_matrix maze
mini_sudoku needle_haystack number_filtering number_format number_sequence number_sorting
palindrome_generation path_star polynomial_equations polynomial_multiplication power_function
prime_factorization products quantum_lock ransom_note rectangle_count rotate_matrix rotten_oranges
self_reference sentence_reordering shortest_path simple_equations simple_geometry simple_integration
sokoban spell_backward spiral_matrix string_insertion string_manipulation string_splitting
string_synthesis sudoku survo syllogism time_intervals tsumego word_ladder word_sequence_reversal
word_sorting zebra_puzzles
"""
FAMILIES = tuple(_FAMILIES_TEXT.split())
"""Families whose answer is a text, a list or a number; puzzles with many answers are left out."""

PROBLEMS = 40
MAX_PERMUTATIONS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """An answer to judge, and whether it is right."""

    family: str
    gold: str
    answer: str
    is_right: bool


def cases_of(family: str, *, problems: int = PROBLEMS) -> Iterator[Case]:
    """Yields right and wrong answers to the family's problems; the seed is fixed."""
    import reasoning_gym

    generator = random.Random(1)
    with contextlib.redirect_stdout(sys.stderr):  # some families print while they make a problem
        data = reasoning_gym.create_dataset(family, size=problems, seed=1)
        golds = [str(data[index]["answer"]).strip() for index in range(problems)]
    for gold in golds:
        if not gold:
            continue
        for answer in dict.fromkeys(spellings(gold)):
            yield Case(family=family, gold=gold, answer=answer, is_right=True)
        for answer in dict.fromkeys(near_misses(gold, generator)):
            if key(answer) != key(gold) and not _is_same_value(gold, answer, family):
                yield Case(family=family, gold=gold, answer=answer, is_right=False)


def key(text: str) -> str:
    """Returns a text without case, quotes and spaces at signs, which have no meaning in these families."""
    text = re.sub(r"[\s'\"]+", " ", text.casefold())
    return re.sub(r" ?([^\w ]) ?", r"\1", text).strip(" .,")


def spellings(gold: str) -> list[str]:
    """Returns the gold as a model may write it in a box."""
    written = [gold, f" {gold} ", f"${gold}$" if "$" not in gold else gold]
    if re.fullmatch(r"[A-Za-z ]+", gold):
        written.append(rf"\text{{{gold}}}")
    if re.fullmatch(r"-?\d+", gold):
        written += [f"{gold}.0", rf"\frac{{{2 * int(gold)}}}{{2}}"]
    if re.fullmatch(r"\d{4,}", gold):
        written.append(f"{int(gold):,}")
    if re.fullmatch(r"\d+/\d+", gold):
        written.append(r"\frac{{{}}}{{{}}}".format(*gold.split("/")))
    if "," in gold and "[" not in gold:
        written.append(re.sub(r"\s*,\s*", " , ", gold))
    return written


def near_misses(gold: str, generator: random.Random) -> Iterator[str]:
    """Yields permutations of an answer's parts, and answers with one left out, doubled or changed."""
    for separator in ("\n", ", ", ",", " \u2192 ", " \u00d7 ", " ", ":", "-", "/", ""):
        parts = gold.split(separator) if separator else list(gold)
        if len(parts) < 2 or (separator == "" and not re.fullmatch(r"\w{2,40}", gold)):
            continue
        yield from _permutations(parts, separator, generator)
        at = generator.randrange(len(parts))
        yield separator.join(parts[:at] + parts[at + 1 :])
        yield separator.join(parts[: at + 1] + parts[at:])
        other = generator.choice(parts)
        yield separator.join([*parts[:at], other, *parts[at + 1 :]])
    for match in itertools.islice(re.finditer(r"\d", gold), 6):
        yield gold[: match.start()] + str((int(match.group()) + 1) % 10) + gold[match.end() :]


def _permutations(parts: list[str], separator: str, generator: random.Random) -> Iterator[str]:
    if len(parts) <= 4:
        yield from (separator.join(permuted) for permuted in itertools.permutations(parts))
        return
    yield separator.join(reversed(parts))
    for _ in range(MAX_PERMUTATIONS):
        permuted = list(parts)
        first, second = generator.sample(range(len(parts)), 2)
        permuted[first], permuted[second] = permuted[second], permuted[first]
        yield separator.join(permuted)


_EXPRESSIONS = ("complex_arithmetic", "polynomial_multiplication", "simple_integration", "dice", "coin_flip")
_POINTS = [
    {name: start + index * step for index, name in enumerate(string.ascii_letters)}
    for start, step in ((1.5, 0.25), (2.0, 0.5), (0.3, 0.1))
]


def _is_same_value(gold: str, answer: str, family: str) -> bool:
    """Returns True if another writing is no other answer: a sum, a product or a set in another order.

    Judged without the verifier: by Python's numbers, or by comparing the parts as multisets.
    """
    try:
        if float(gold) == float(answer):
            return True
    except ValueError:
        pass
    if re.fullmatch(r"\d+ [a-z]+", gold) and answer.strip() == gold.split()[0]:
        return True  # a unit on one side only, by the table of rules
    if family == "prime_factorization":
        return sorted(re.findall(r"\d+", gold)) == sorted(re.findall(r"\d+", answer))
    if family in ("polynomial_equations", "cryptarithm"):
        golds, answers = ([part.strip() for part in text.split(",")] for text in (gold, answer))
        return _are_among(golds, answers) and _are_among(answers, golds)
    if family in _EXPRESSIONS:
        return _same_polynomial(gold, answer)
    return False


def _are_among(some: list[str], others: list[str]) -> bool:
    return all(any(one == other or _same_polynomial(one, other) for other in others) for one in some)


def _same_polynomial(gold: str, answer: str) -> bool:
    """Compares at three points with Python's own arithmetic; a text that is no expression differs."""
    found = []
    for text in (gold, answer):
        source = re.sub(r"(?<=\d)i\b", "j", text.replace(" ", ""))
        if not re.fullmatch(r"(?:[\d.]|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|[+\-*/()])*", source):
            return False
        try:
            code = compile(source, "answer", "eval")
            found.append([eval(code, {"__builtins__": {}}, values) for values in _POINTS])
        except (SyntaxError, TypeError, ArithmeticError, NameError):
            return False
    return all(abs(left - right) <= 1e-9 * max(1, abs(left)) for left, right in zip(*found, strict=True))
