"""Units, currencies and number words after (or before) a number."""

import re

_NOT_UNITS_TEXT = """
not no wrong incorrect or is isnt if but unless false true to through between and pi sin cos
tan cot sec csc log ln exp sqrt mod bmod than least most minus plus times over maybe either
infty infinity undefined
"""
_NOT_UNITS = frozenset(_NOT_UNITS_TEXT.split())
_SYMBOLS_TEXT = """
cm mm km nm ft in yd mi kg mg lb oz sec ms min hr ml dl kj kw pa hz mph kmh kph rad deg gm mol
usd eur gbp jpy inr am pm a.m p.m sq cu um us ohm
"""
_SYMBOLS = frozenset(_SYMBOLS_TEXT.split())
_LETTERS = frozenset("mgslhLNJWVKA")
"""Units of one letter, case-sensitive; any other letter is a variable."""
_ALIASES = {
    "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm",
    "kilometer": "km", "kilometre": "km", "foot": "ft", "feet": "ft", "inch": "in", "inche": "in",
    "yard": "yd", "mile": "mi", "kilogram": "kg", "gram": "g", "gm": "g", "pound": "lb",
    "ounce": "oz", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h",
    "liter": "l", "litre": "l", "milliliter": "ml", "degree": "deg", "dollar": "usd", "radian": "rad",
    "euro": "eur", "rupee": "inr", "yen": "jpy", "kmh": "km/h", "kph": "km/h", "mph": "mi/h",
}  # fmt: skip
_GENERIC = frozenset({"unit", "total", "of", "the"})
_CURRENCIES = frozenset({"usd", "eur", "gbp", "jpy", "inr", "cent"})
CURRENCY_SIGNS = (
    "\u00a2-\u00a5\u058f\u060b\u09f2\u09f3\u09fb\u0af1\u0bf9\u0e3f\u17db\u20a0-\u20cf\ua838\ufdfc"
    "\ufe69\uffe0\uffe1\uffe5\uffe6"
)
"""All currency signs of Unicode, as a character class, but the dollar, which becomes ``usd``."""
_SUFFIX_WORD = re.compile(rf"[A-Za-z]+(?:\.[A-Za-z]+)*\.?|[{CURRENCY_SIGNS}]|[\u00b5\u3040-\u9fff]+")
_PREFIXED = re.compile(
    r"(?:da|[YZEPTGMkhdcmunpf]|[KMGTP]i)?"
    r"(?:m|g|s|l|L|A|K|mol|Hz|N|J|W|Wh|V|Pa|F|C|T|H|B|b|bit|bps|cal|eV|bar|t|S|lm|lx)"
)
"""Symbols of units by the rule of the SI: a prefix and a unit."""
_NAMES = {
    "byte": "b", "watt": "w", "hertz": "hz", "volt": "v", "ampere": "a", "amp": "a", "joule": "j",
    "newton": "n", "pascal": "pa", "meter": "m", "metre": "m", "gram": "g", "liter": "l", "litre": "l",
    "second": "s", "calorie": "cal", "watthour": "wh", "bit": "bit",
}  # fmt: skip
_NAME_PREFIXES = {
    "kilo": "k", "mega": "m", "giga": "g", "tera": "t", "milli": "m", "micro": "u", "nano": "n", "centi": "c",
}  # fmt: skip
_PREFIXED_NAME = re.compile(rf"({'|'.join(_NAME_PREFIXES)})({'|'.join(_NAMES)})")

_UNIT_SIGNS = (
    (re.compile(r"(?:\\mu|[\u00b5\u03bc])\s*(?=[a-zA-Z])"), "u"),
    (re.compile(r"(?:(?<=[kMG])\s*)?(?:\\Omega|[\u03a9\u2126])(?![a-z])"), "ohm"),
    (re.compile(r"\\frac\s*\{([A-Za-z ]+)\}\s*\{([A-Za-z ]+)\}"), r"\1/\2"),
    (re.compile(r"\s+([a-z]+)\s*\^\s*\{?\s*-1\s*\}?"), r"/\1"),
)
"""Signs in units and their spelling in letters: micro, ohm, a fraction of units, ``m s^{-1}``."""
_SKELETON = re.compile(r"[/*]?(?:[\s(),']*u[\s(),']*[/*\-]?)*(?<![/*\-])")
"""Matches words (``u``) with at most one sign between two of them: ``u/u``, ``u-u``, not ``-- u``."""

_PREFIXES = {
    "rs": "inr",
    "usd": "usd",
    "\u20ac": "eur",
    "\u00a3": "gbp",
    "\u00a5": "jpy",
    "\u20b9": "inr",
    "\u00a2": "cent",
}
_PREFIX = re.compile(rf"(?:(rs|usd)\.?|([{CURRENCY_SIGNS}]))\s*(?=[+\-\d.])", re.I)
_SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_SCALE = re.compile(rf"\s*\b({'|'.join(_SCALES)})s?\b", re.I)


def split_currency(text: str) -> tuple[str, str]:
    """Returns the currency of a leading sign, or an empty string, and the text without it."""
    match = _PREFIX.match(text)
    if match is None:
        return "", text
    sign = (match[1] or match[2]).lower()
    return _PREFIXES.get(sign, sign), text[match.end() :]


def split_scale(text: str) -> tuple[int, str]:
    """Returns the factor of a leading number word (``million``), or 1, and the text without it."""
    match = _SCALE.match(text)
    return (1, text) if match is None else (_SCALES[match[1].lower()], text[match.end() :])


def is_currency(unit: str) -> bool:
    """Returns True if a canonical unit is a currency."""
    return unit in _CURRENCIES or bool(re.fullmatch(rf"[{CURRENCY_SIGNS}]", unit))


def _singular(name: str) -> str:
    name = name.replace(".", "")
    name = _PREFIXES.get(name, name)
    singular = name[:-1] if len(name) > 2 and name.endswith("s") else name
    if match := _PREFIXED_NAME.fullmatch(singular):
        return _NAME_PREFIXES[match[1]] + _NAMES[match[2]]
    return _ALIASES.get(singular, _ALIASES.get(name, singular))


def canonical_unit(text: str) -> str | None:
    """Returns the unit named by a suffix, ``""`` for a generic one, None if it is not a unit.

    ``square centimeters``, ``cm^2`` and ``cm^{2}`` are the same unit, as are ``apples`` and ``apple``.
    """
    text = re.sub(r"\^?\{?\(?([23])\)?\}?", r"\1", re.sub(r"\s*\^\s*", "^", text))
    text = re.split(r"(?<=[a-z])\s+of\s", text)[0]  # ``cups of feed`` are cups
    text = re.sub(r"(?<=[a-z])\s+per\s+", "/", text.lower()).replace("\\", "")
    power, names = "", []
    for token in re.split(r"(\s+|/|\*|cdot)", text):
        token = token.strip().rstrip(".")
        if not token or token in ("*", "cdot"):
            continue
        if token == "/":
            names.append("/")
            continue
        if token.startswith("square") or token == "sq":
            power = "2"
            continue
        if token.startswith("cubic") or token == "cu":
            power = "3"
            continue
        match = re.fullmatch(r"([^\d]+)([23]?)", token)
        if match is None or match[1] in _NOT_UNITS:
            return None
        power = match[2] or power
        name = _singular(match[1])
        if name not in _GENERIC:
            names.append(name)
    return "".join(names) + (power if names else "")


def _is_unit_word(word: str, *, is_spaced: bool, is_gold: bool) -> bool:
    """Returns True if a word after a number is a unit or a counted noun, not a product of variables."""
    word = word.rstrip(".")
    if is_currency(word):
        return True
    if len(word) == 1:
        # ``10m`` is ten metres in an answer; ``10 N`` is newtons, ``10N`` is not.
        return word in _LETTERS and (is_spaced or not (is_gold or word.isupper()))
    lowered = word.lower()
    if not word.isascii() or lowered in _SYMBOLS or _singular(lowered) in _SYMBOLS:
        return True
    if lowered in _GENERIC or lowered == "per":
        return is_spaced
    if not word.islower() and _PREFIXED.fullmatch(word):
        return is_spaced or not is_gold  # ``160 GB``
    # ``12 apples`` has a unit; ``2ab`` and ``2 xy`` are products.
    return len(word) >= 3 and (is_spaced or len(word) >= 5) and bool(re.search("[aeiouy]", lowered))


def unit_suffix(text: str, *, is_gold: bool) -> str | None:
    """Returns the canonical unit of the text after a number; None if that is part of an expression."""
    if not text.strip():
        return ""
    if len(text) > 120:
        return None
    for pattern, replacement in _UNIT_SIGNS:
        text = pattern.sub(replacement, text)
    body = text.strip()
    words = _SUFFIX_WORD.findall(body)
    skeleton = re.sub(r"\^\s*\{?\s*[23]\s*\}?", " ", _SUFFIX_WORD.sub("u", body.replace(r"\cdot", "*")))
    if not words or not _SKELETON.fullmatch(skeleton):
        return None
    if any(word.lower().rstrip(".") in _NOT_UNITS for word in words):
        return None
    is_spaced = text[0] == " "
    if not all(_is_unit_word(word, is_spaced=is_spaced, is_gold=is_gold) for word in words):
        return None
    return canonical_unit(body)


_LONG_NAMES = "|".join(sorted({*_SYMBOLS, *_ALIASES, "unit"}, key=len, reverse=True))
_UNIT_OF_EXPRESSION = re.compile(
    rf"\s((?:(?:square|sq\.?|cubic|cu\.?)\s+)?(?:{_LONG_NAMES})s?\b\.?"
    rf"(?:\s*(?:/|\bper\b)\s*(?:{_LONG_NAMES})s?\b\.?)?\s*(?:\^\s*\{{?\s*[23]\s*\}}?)?)\s*$",
    re.I,
)


def split_unit(text: str) -> tuple[str, str]:
    """Splits an expression from the unit after it: ``20\\pi cm^2`` is (``20\\pi``, ``cm2``).

    Only known units of two letters or more are split off: ``2 \\sqrt{3} m`` may be a product.
    """
    match = _UNIT_OF_EXPRESSION.search(text)
    if match is None or not re.search(r"\d|\\[a-zA-Z]", text[: match.start()]):
        return text, ""
    return text[: match.start()].strip(), canonical_unit(match[1]) or ""
