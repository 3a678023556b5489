"""Normalises the many ways of writing the same LaTeX to one; linear in the length of the text."""

import re
import unicodedata
from functools import lru_cache

from rewards.answers.brackets import matching_braces, strip_outer

_CHARACTERS = {
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-",
    "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u00f7": "/",
    "\u2215": "/", "\u2044": "/", "\u2236": ":", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u2a7d": r"\le ", "\u2a7e": r"\ge ", "\u2260": r"\ne ", "\u2248": r"\approx ",
    "\u221e": r"\infty ", "\u03c0": r"\pi ", "\u221a": r"\sqrt ", "\u00b1": r"\pm ",
    "\u2213": r"\mp ", "\u00b0": r"^\circ ", "\u222a": r"\cup ", "\u2229": r"\cap ",
    "\u2208": r"\in ", "\u2205": r"\emptyset ", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}",
    "\u2115": r"\mathbb{N}", "\u211a": r"\mathbb{Q}", "\u3001": ",", "\u3002": ".",
    "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u3000": " ", "\u00a0": " ", "\u2009": " ",
    "\u202f": " ", "\u2007": " ", "\u2103": r"^\circ C",
    "\u03b1": r"\alpha ", "\u03b2": r"\beta ", "\u03b8": r"\theta ",
    "\u03bb": r"\lambda ", "\u03c6": r"\phi ", "\u2192": r"\to ", "\u21d2": r"\to ",
}  # fmt: skip
_SUPERSCRIPTS = dict(zip("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207f",
                         "0123456789-n", strict=True))  # fmt: skip
_SUBSCRIPTS = {chr(0x2080 + digit): str(digit) for digit in range(10)}

_WORD_COMMANDS = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|tiny|small|normalsize|large|Large|huge|Huge|checkmark|limits|nolimits|left|right|[bB]igg?[lrm]?|rm|bf|it"
    r"|centering|immediate)(?![a-zA-Z])"
)
_SPACES = re.compile(r"\\q?quad|(?<!\\)\\[,;:!> ]|\\thinspace|\\enspace|~|\\hspace\*?\{[^{}]*\}|\s+")
_THOUSANDS = re.compile(
    r"(?<=\d)(?:\\(?:text|mathord|mathpunct|mathrm)\s*\{\s*,\s*\}|\{,\}|\{\s*\\[,;:! ]\s*\}"
    r"|,\s*\\!|\\[,;: !]|,\s*\\,)\s*(?=\d{3}(?!\d))"
)
_FONT = re.compile(
    r"\\(?:math(?:rm|bf|it|sf|tt|cal|normal)|boldsymbol|bm|pmb|text(?:rm|bf|it|sf|tt|normal|up)?"
    r"|mbox|hbox|emph|math(?:bin|rel|ord|op|punct|open|close)|underline|operatorname\*?|boxed|fbox|textcolor\{[^{}]*\}|color\{[^{}]*\})"
    r"\s*(?=\{)"
)
_UNIT_NAMES = {"m": "meter", "g": "gram", "s": "second", "h": "hour", "l": "liter", "L": "liter"}
_UNIT_LETTER = re.compile(
    r"(?<=[\d})])(?:\\[,;: ]|~|\s)*\\(?:text|mbox|textrm|mathrm)\s*\{\s*([mgshlL])\s*\}"
    r"(?=\s*(?:\^\s*\{?\s*[23]\s*\}?)?[\s.$]*$)"
)
"""The letter of a unit in upright type at the end, ``10\\sqrt3\\text{ m}``, which is no variable."""
_COLOUR = re.compile(r"\\color\{[^{}]*\}|\\[hv]?phantom(?:\{[^{}]*\})?")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z(){}\[\]%$,;!])")
_PLAIN_NUMBER = re.compile(r"[-+]*(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.[0-9]*)?[.,]?")
_SYNONYMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"\\[dt]binom(?![a-z])", r"\\binom"),
        (r"\{([^{}\\]*)\\choose(?![a-z])([^{}\\]*)\}", r"\\binom{\1}{\2}"),
        (r"(?<!\w)(\w{1,9})\s*\\choose(?![a-z])\s*(\w{1,9})(?!\w)", r"\\binom{\1}{\2}"),
        (r"(?:\{\}\s*)?[_^]\s*\{?(\d+)\}?\s*C\s*_\s*\{?(\d+)\}?", r"\\binom{\1}{\2}"),
        (r"\\(?:euro|texteuro)(?![a-z])(?:\{\})?", "\u20ac"),
        (r"\\(?:pounds|textsterling)(?![a-z])(?:\{\})?", "\u00a3"),
        (r"\\(?:yen|textyen)(?![a-z])(?:\{\})?", "\u00a5"),
        (r"\\(?:cents?|textcent)(?![a-z])(?:\{\})?", "\u00a2"),
        (r"\\\{\s*\\\}|^\s*(?i:(?:the )?(?:empty|null) set)\.?\s*$", r"\\emptyset "),
        (r"\s*\\(?:colon|ratio)(?![a-z])\s*", ":"),
        (r"\\Bbb(?![a-z])", r"\\mathbb"),
        (r"(?<![A-Za-z])US\s*\\\$|\{\s*\\\$\s*\}|\\textdollar(?![a-z])", r"\\$"),
        (r" ?\{ ?([:.,]) ?\} ?", r"\1"),
        (r"(?<![\w\\^}\]\s])\{(\d+)\}", r"\1"),
        (r"\\(?:leqslant|leqq|leq|le)(?![a-z])|<=|\u2264", r"\\le "),
        (r"\\(?:geqslant|geqq|geq|ge)(?![a-z])|>=", r"\\ge "),
        (r"\\(?:neq|ne)(?![a-z])|!=|\\not\s*=", r"\\ne "),
        (r"\\(?:long)?(?:right|Right)arrow(?![a-z])|(?<![<-])-{1,3}>", r"\\to "),
        (r"\\lt(?![a-z])", "<"),
        (r"\\gt(?![a-z])", ">"),
        (r"\\(?:approx|simeq|thickapprox|doteq)(?![a-z])", r"\\approx "),
        (r"\\(?:lbrace|lbrack)(?![a-z])", r"\\{"),
        (r"\\(?:rbrace|rbrack)(?![a-z])", r"\\}"),
        (r"\\(?:lvert|rvert|vert)(?![a-z])", "|"),
        (r"\\(?:varnothing|emptyset|phi(?=\s*$))(?![a-z])", r"\\emptyset "),
        (r"\\(?:geneq|leneq)(?![a-z])", ""),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))|\\degree(?![a-z])", r"^\\circ "),
        (r"\\infin(?![a-z])", r"\\infty"),
        (r"(?<![\w\\])(?:infinity|inf|oo)(?![\w])", r"\\infty "),
        (r"\\(?:div)(?![a-z])", "/"),
        (r"\\sqrt\s*\(([^()]*)\)|(?<![\\a-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"(?<![\\a-zA-Z])sqrt\s*\{", r"\\sqrt{"),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"\^\s*(\d{2,})", r"^{\1}"),
        (r"\^\s*\(([^()]*)\)", r"^{(\1)}"),
        (r"\*\*(?=[\w({])(?<=[\w)}]\*\*)", "^"),
        (r"\\%", "%"),
        (r"\\\$\s*(?=[+\-]?\s*[\d.])", "usd "),
        (r"\\\$|\$", " "),
        (r"\\&", "&"),
        (r"\\[()\[\]]", " "),
        (r"\\{2}\s*$", ""),
    )
]


def _plain_character(character: str) -> str:
    """Returns the ASCII or LaTeX spelling of one character."""
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    code = ord(character)
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    # Full-width forms of ASCII.
    if 0xFF01 <= code <= 0xFF5E:
        return chr(code - 0xFEE0)
    # Mathematical alphanumeric symbols, e.g. bold or italic letters.
    if 0x1D400 <= code <= 0x1D7FF:
        return unicodedata.normalize("NFKC", character)
    if character in _SUPERSCRIPTS:
        return "^{" + _SUPERSCRIPTS[character] + "}"
    if character in _SUBSCRIPTS:
        return "_{" + _SUBSCRIPTS[character] + "}"
    if unicodedata.category(character) == "No" and "\u2044" in (
        parts := unicodedata.normalize("NFKC", character)
    ):
        top, bottom = parts.split("\u2044")
        return rf"\frac{{{top}}}{{{bottom}}}"
    # Zero-width marks and control characters carry no mathematics.
    if unicodedata.category(character) in ("Cf", "Cc", "Cs"):
        return " " if character in "\t\n\r\x0b\x0c" else ""
    return character


def ascii_spelling(text: str) -> str:
    """Spells Unicode digits, signs and fractions in ASCII or LaTeX.

    Superscript digits become exponents, not plain digits, which would be another number.
    """
    if text.isascii() and text.isprintable():
        return text
    others = {
        ord(character): _plain_character(character) for character in set(text) if not " " <= character <= "~"
    }
    return text.translate(others).replace("}^{", "")


def _unwrap_fonts(text: str) -> str:
    """Replaces ``\\font{body}`` by the body between spaces."""
    # Several passes, as unwrapping may expose another font; bounded, as each costs a pass over the text.
    for _ in range(4):
        matches = list(_FONT.finditer(text))
        if not matches:
            return text
        partners = matching_braces(text)
        edits: dict[int, tuple[int, str]] = {}
        for match in matches:
            opening = match.end()
            if opening in partners:
                edits[match.start()] = (opening + 1, " ")
                edits[partners[opening]] = (partners[opening] + 1, " ")
        if not edits:
            return text
        pieces, position = [], 0
        for start in sorted(edits):
            if start < position:
                continue
            end, replacement = edits[start]
            pieces += [text[position:start], replacement]
            position = end
        text = "".join(pieces) + text[position:]
    return text


def is_plain_number(text: str) -> bool:
    """Returns True for digits with signs, points and commas, the one kind of answer that may be very long."""
    return bool(_PLAIN_NUMBER.fullmatch(text))


def normalise(text: str) -> str:
    """Returns the canonical spelling of an answer: wrappers, fonts, spacing and synonyms are removed.

    Values do not change: ``0.50`` stays ``0.50`` (see ``rewards.answers.quantity``).
    """
    # Short texts are cached: a gold is compared with a group of answers, and an answer is normalised twice.
    return _cached(text) if len(text) <= 500 else _normalise(text)


def _normalise(text: str) -> str:
    if is_plain_number(text):
        return strip_outer(text)
    text = ascii_spelling(text)
    if "\\begin" not in text:
        # Escaped twice, as in JSON; inside an environment a double backslash separates rows.
        text = _DOUBLED.sub(r"\\", text)
    text = _THOUSANDS.sub("", text)
    text = _WORD_COMMANDS.sub(" ", text)
    text = _UNIT_LETTER.sub(lambda match: f"\\ {_UNIT_NAMES[match[1]]}", text)
    text = _unwrap_fonts(text)
    text = _COLOUR.sub(" ", text)
    text = _SPACES.sub(" ", text)
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    return strip_outer(re.sub(r" +", " ", brace_arguments(text)).strip())


_cached = lru_cache(maxsize=8192)(_normalise)


_OPERATOR = re.compile(r"\\(frac|binom|sqrt)(?![a-zA-Z])\s*(?:\[[^\[\]]*\]\s*)?")
_ARGUMENT = re.compile(r"\s*(\d|[a-zA-Z]|\\[a-zA-Z]+)")
_RADICAND = re.compile(r"\s*(\d+|[a-zA-Z]|\\[a-zA-Z]+)")  # \sqrt51 is read as the root of 51, unlike in TeX


def brace_arguments(text: str) -> str:
    """Adds the missing braces of ``\\frac12``, ``\\frac{1}2`` and ``\\sqrt3``, which latex2sympy needs."""
    if "\\" not in text:
        return text
    partners = matching_braces(text)
    bare: dict[int, str] = {}
    for match in _OPERATOR.finditer(text):
        position = match.end()
        for _ in range(1 if match[1] == "sqrt" else 2):
            while position < len(text) and text[position] == " ":
                position += 1
            if position in partners:
                position = partners[position] + 1
                continue
            argument = (_RADICAND if match[1] == "sqrt" else _ARGUMENT).match(text, position)
            if argument is None or argument[1] in (r"\frac", r"\sqrt", r"\binom"):
                break
            bare[position] = argument[1]
            position = argument.end()
    pieces, position = [], 0
    for start, argument in sorted(bare.items()):
        pieces += [text[position:start], "{" + argument + "}"]
        position = start + len(argument)
    return "".join(pieces) + text[position:]
