"""Words, letters and sequences: what is text and not a product, and when two texts are the same.

A gold is algebra only if something shows it: an operator, a power, a command, brackets or a single letter.
``HTH``, ``cat``, ``12AB`` and ``A-B-C`` are text, and text is compared in order.
"""

import re

_INDEX = re.compile(r"_\s*(?:\{\s*(\w+)\s*\}|(\w))")
_CODE = r"(?>\d++|[A-Z][A-Z\d]*+(?![a-z])|[A-Za-z]{2,}+|[a-z]\d++)"
_SEQUENCE = re.compile(
    rf"{_CODE}(?:-{_CODE}){{2,}}+|{_CODE}(?:/{_CODE}){{2,}}+|\d++(?:\.\d++){{2,}}+|\d++-\d++"
)
"""``A-B-C``, ``1-2-3``, ``3/4/2020``, ``1.2.3``, ``555-1234``; not ``a-b-c`` and ``6-3i``."""
_OPERATOR = re.compile(r"[+*/^=<>|!()\[\]{}\\:]|-")
_CODE_WORDS = re.compile(r"[A-Za-z\d.'\s_]+")
_COEFFICIENT = re.compile(r"-?\s*+\d*+\.?\d*+\s*+[a-zA-Z]'*+")
_FUNCTION = re.compile(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp|gcd|lcm|max|min|sqrt|det|lim")
_WORD = re.compile(
    r"(?<![\\a-zA-Z])(?:[a-zA-Z]{4,}|[A-Z][a-z]{2,}|(?i:yes|no|odd|not|none|all|any|and|or))(?![a-zA-Z])|[^\x00-\x7f]"
)
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[^\W\d_]+|\d+(?:\.\d+)*|[^\w\s]|_")
_QUOTE = re.compile(r"\"|^'|'$|(?<=\s)'|'(?=[\s,\]])")
_BRACE = re.compile(r"(?<!\\)[{}]")
_BETWEEN = re.compile(r"(?<=[\w'#])\s*(?:\\(?:to|cdot|times)(?![a-z])|\*)\s*(?=[\w\\#])")
"""Arrows and product signs between two elements; they do not count."""
_PRODUCT = re.compile(r"\\cdot|\\times|\*")
_HEX = re.compile(r"(?:0x)?[\da-f]+", re.I)


def has_word(text: str) -> bool:
    """Returns True if the text has a word: four letters, a name, ``yes``, or another script."""
    return bool(_WORD.search(text))


def is_algebra(text: str) -> bool:
    """Returns True if a text shows that its letters are variables; ``xy``, ``HTH`` and ``a1b2`` do not."""
    if _SEQUENCE.fullmatch(text):
        return False
    plain = _INDEX.sub("", text)
    if _COEFFICIENT.fullmatch(plain) or not re.search("[A-Za-z]", plain):
        return not re.search(r"\d\s+\d", text)
    if _FUNCTION.search(plain):
        return True
    # A prime is an inverse turn in ``R U R'``, and a derivative only with brackets.
    return not _CODE_WORDS.fullmatch(plain) and bool(_OPERATOR.search(plain))


def same_text(*, gold: str, answer: str) -> bool:
    """Returns True if two texts have the same words, letters and numbers in the same order.

    Case counts only where it carries meaning (``case_matters``). Spacing, quotes, underscores and the kind
    of separator do not count.
    """
    is_upper = gold.isupper()
    if not case_matters(gold):
        gold, answer = gold.casefold(), answer.casefold()
    elif _has_other_case(gold, answer):
        return False
    if ("_" in gold) != ("_" in answer):  # ``H_2O`` and ``H2O``
        gold, answer = gold.replace("_", ""), answer.replace("_", "")
    left, right = _tokens(gold), _tokens(answer)
    if left == right:
        return True
    # ``A B C`` and ``ABC`` are the same code, and a product sign joins letters.
    is_code = is_upper or all(len(token) == 1 for token in left if token.isalpha())
    return (is_code or _PRODUCT.search(answer) is not None) and _joined(left) == _joined(right)


def case_matters(gold: str) -> bool:
    """Returns True for single letters, formulas (``H_2O``) and short words of mixed case (``NaCl``)."""
    plain = _INDEX.sub(r"\1\2", gold)
    if re.search(r"[A-Za-z]\d|\d[A-Za-z]", plain):
        return not _HEX.fullmatch(plain)
    words = re.findall(r"[^\W\d_]+", plain)
    if all(len(word) == 1 for word in words):
        return True
    return any(len(word) <= 4 and not (word.islower() or word.isupper() or word.istitle()) for word in words)


def _has_other_case(gold: str, answer: str) -> bool:
    letters = (re.sub(r"[\W\d_]", "", text) for text in (gold, answer))
    left, right = letters
    return left != right and left.casefold() == right.casefold()


def _tokens(text: str) -> list[str]:
    text = _BETWEEN.sub(" ", _BRACE.sub("", _QUOTE.sub("", text)))
    return _TOKEN.findall(re.sub(r"[.!?]+\s*$", "", text))


def _joined(tokens: list[str]) -> list[str]:
    """Joins neighbouring runs of letters."""
    joined: list[str] = []
    for token in tokens:
        if joined and token.isalpha() and joined[-1].isalpha():
            joined[-1] += token
        else:
            joined.append(token)
    return joined
