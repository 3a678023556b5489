"""Normalises the many ways of writing the same LaTeX to one; linear in the length of the text."""

import re
import unicodedata
from functools import lru_cache

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
    "\u202f": " ", "\u2007": " ", "\u03b1": r"\alpha ", "\u03b2": r"\beta ", "\u03b8": r"\theta ",
    "\u03bb": r"\lambda ", "\u03c6": r"\phi ", "\u2192": r"\to ", "\u21d2": r"\to ",
}  # fmt: skip
_SUPERSCRIPTS = dict(zip("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207f",
                         "0123456789-n", strict=True))  # fmt: skip
_SUBSCRIPTS = {chr(0x2080 + digit): str(digit) for digit in range(10)}

_WORD_COMMANDS = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|left|right|[bB]igg?[lrm]?|rm|bf|it"
    r"|centering|immediate)(?![a-zA-Z])"
)
_SPACES = re.compile(r"\\q?quad|(?<!\\)\\[,;:!> ]|\\thinspace|\\enspace|~|\\hspace\*?\{[^{}]*\}|\s+")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\s*\\!|\\[,;: !]|,\s*\\,)\s*(?=\d{3}(?!\d))")
_FONT = re.compile(
    r"\\(?:math(?:rm|bf|it|sf|tt|cal|normal)|boldsymbol|bm|pmb|text(?:rm|bf|it|sf|tt|normal|up)?"
    r"|mbox|hbox|emph|math(?:bin|rel|ord|op|punct|open|close)|underline|operatorname\*?|boxed|fbox|textcolor\{[^{}]*\}|color\{[^{}]*\})"
    r"\s*(?=\{)"
)
_COLOUR = re.compile(r"\\color\{[^{}]*\}|\\[hv]?phantom(?:\{[^{}]*\})?")
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z(){}\[\]%$,;!])")
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
        (r"\\\{\s*\\\}", r"\\emptyset "),
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


def matching_braces(text: str, openers: str = "{", closers: str = "}") -> dict[int, int]:
    """Maps positions of opening brackets to those of their partners; escaped braces count as text."""
    partners: dict[int, int] = {}
    stack: list[int] = []
    for match in re.finditer(rf"\\.|[{re.escape(openers + closers)}]", text, re.S):
        character = match.group()
        if character in openers:
            stack.append(match.start())
        elif stack and character in closers:
            partners[stack.pop()] = match.start()
    return partners


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
    return "".join(
        character if " " <= character <= "~" else _plain_character(character) for character in text
    ).replace("}^{", "")


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


def normalise(text: str) -> str:
    """Returns the canonical spelling of an answer: wrappers, fonts, spacing and synonyms are removed.

    Values do not change: ``0.50`` stays ``0.50`` (see ``rewards.answers.quantity``).
    """
    # Short texts are cached: a gold is compared with a group of answers, and an answer is normalised twice.
    return _cached(text) if len(text) <= 500 else _normalise(text)


def _normalise(text: str) -> str:
    text = ascii_spelling(text)
    if "\\begin" not in text:
        # Escaped twice, as in JSON; inside an environment a double backslash separates rows.
        text = _DOUBLED.sub(r"\\", text)
    text = _THOUSANDS.sub("", text)
    text = _WORD_COMMANDS.sub(" ", text)
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


def strip_outer(text: str) -> str:
    """Removes pairs of braces and parentheses around the whole text, and final punctuation.

    A pair with a comma or semicolon at its own level is kept: it is a set, tuple or interval.
    """
    # Bounded, since each layer costs a pass over the text.
    for _ in range(20):
        before = text
        text = text.strip().rstrip(".;, ").strip()
        text = re.sub(r"(?<!\\)(?:\\\\)*\\$", "", text)
        text = re.sub(r"^\*\*(.*)\*\*$", r"\1", text, flags=re.S)
        text = _strip_pairs(text)
        if text == before:
            break
    return text


_CYCLE = re.compile(r"(?!\d{1,3}(?: \d{3})+$)\d+(?: \d+)+")


def _strip_pairs(text: str) -> str:
    if not text or text[0] not in "{(":
        return text
    partners = matching_braces(text, "{([", "})]")
    first, last = 0, len(text) - 1
    while first < last and text[first] in "{(" and partners.get(first) == last:
        if text[first] + text[last] not in ("{}", "()"):
            break
        first, last = first + 1, last - 1
        while first < last and text[first] == " ":
            first += 1
        while first < last and text[last] == " ":
            last -= 1
    # Restore the innermost pair if it encloses a list or a cycle, such as ``(1 2 3)``.
    inner = text[first : last + 1]
    if first and (len(split_top(inner, ",;")) > 1 or (text[0] == "(" and _CYCLE.fullmatch(inner))):
        opening = max(index for index in range(first) if text[index] in "{(")
        return text[opening : partners[opening] + 1]
    return inner


_OPENERS = {"(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"}
_CLOSERS = {")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"}
_TOKEN = re.compile(r"\\begin\{[^{}]*\}|\\end\{[^{}]*\}|\\[a-zA-Z]+|\\.|.", re.S)


def top_tokens(text: str) -> list[tuple[int, str]]:
    """Returns the tokens outside all brackets and environments, each with its position."""
    tokens, depth = [], 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in _OPENERS or token.startswith("\\begin"):
            depth += 1
        elif token in _CLOSERS or token.startswith("\\end"):
            depth = max(0, depth - 1)
        elif depth == 0:
            tokens.append((match.start(), token))
    return tokens


def split_top(text: str, separators: str | set[str]) -> list[str]:
    """Splits at separators outside all brackets and environments."""
    parts, start = [], 0
    for position, token in top_tokens(text):
        if token in separators:
            parts.append(text[start:position].strip())
            start = position + len(token)
    return [*parts, text[start:].strip()]
