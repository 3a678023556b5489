"""Answers outside a box: each form is a function from the end of a solution to the answer, or None."""

import re

from rewards.answers.denial import is_denied
from rewards.answers.joining import joined

_LABELS_TEXT = """
réponse reponse respuesta antwort resposta risposta antwoord svar vastaus odpowiedź odpověď odpoveď odgovor
válasz răspuns cevap yanıt jawaban jawapan javob cavab vastus atbilde atsakymas përgjigje
ответ відповідь адказ отговор одговор жауап απάντηση პასუხი պատասխան
إجابة الإجابة الجواب جواب پاسخ תשובה
उत्तर উত্তর பதில் సమాధానం ಉತ್ತರ ഉത്തരം જવાબ ਜਵਾਬ คำตอบ
答案 答え 回答 解答 정답 답변 답 答
"""  # noqa: RUF001
_LABELS = "|".join([*_LABELS_TEXT.split(), "trả lời", "đáp (?:án|số)"])
"""The word for ``answer`` in other languages; it needs a colon, as verbs differ."""
_MARKER = re.compile(
    r"(?im)(?:\banswer\b(?:\s+to\s[^.\n:]{0,80}?)?\s*"
    r"(?:\*\*)?\s*(?:is|was|:|=(?!=)|\uff1a|(?=[$\\]))\s*(?:\*\*)?\s*:?"
    r"|^\s*(?:####|A:)|\u7b54\u6848\s*(?:\u662f|\u4e3a)?\s*[:\uff1a]?"
    rf"|(?<!\w)(?:{_LABELS})\s*(?:\*\*)?\s*(?:[:=\uff1a]|\bes\b|\best\b|\bist\b|\u662f|\u306f)\s*(?:\*\*)?)\s*"
)
_SENTENCE_END = re.compile(r"\n\s*\n|(?<=[^\s.])[.!?](?=\s+[A-Z\"(]|\s*$)|\u3002|\n(?!\s*[$\\&])")
_NUMBER = (
    r"[-\u2212]?\s?[$\u20ac\u00a3]?\s?(?:\d{1,3}(?:[, ]\d{3})+(?![\d])(?:\.\d+)?|\d+(?:[.,]\d+)?|\.\d+)"
    r"(?:\s*/\s*\d+)?(?:\s?\\?%)?"
)
_LAST_NUMBER = re.compile(rf"(?<![A-Za-z0-9.^_{{\\/])({_NUMBER})(?!\d)")
_MATH = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
# In text addressed to a grader, or in code, an unlabelled number is not an answer.
_NOT_PROSE = re.compile(
    r"(?i)__|`|<\s*/?\s*[a-z!][^<>]*>|\b(?:import|eval|exec|lambda|print|assert|return|subprocess)\b"
    r"|\b(?:reward|score|grader?|grading|label|verdict|evaluator|ground.?truth|full marks?|ignore)\b"
    r"|(?<![\\\w])(?!(?:arc)?(?:sin|cos|tan|sec|csc|cot)|log|exp|sqrt|max|min|gcd|lcm|det|deg)"
    r"[a-z_]{3,}(?:\(|\s*=\s*[\d'\"])|\bcorrect\b\s*[:=]"
)


def _tagged(text: str) -> str | None:
    lowered = text.lower()
    end = lowered.rfind("</answer>")
    start = lowered.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() or None if start >= 0 else None


def _marked(text: str) -> str | None:
    """Returns the text after the last ``answer is``, ``Answer:`` or ``####``, to the end of its sentence."""
    matches = list(_MARKER.finditer(text))
    if not matches:
        return None
    clause = text[matches[-1].end() :].lstrip()
    formula = _MATH.match(clause)
    end = _SENTENCE_END.search(clause, formula.end() if formula else 0)
    clause = clause[: end.start()] if end else clause
    clause = clause.strip().strip("\"'*").strip()
    if not _is_prose(clause):
        return clause or None
    for reader in (_last_math, _last_number):
        answer = reader(clause)
        if answer is not None:
            return answer
    return clause


def _is_prose(text: str, limit: int = 2) -> bool:
    without_math = _MATH.sub(" ", text)
    words = re.findall(r"(?<!\\)\b[A-Za-z]{2,}", re.sub(r"\\[a-zA-Z]+\s*\{[^{}]*\}", " ", without_math))
    foreign = re.findall(r"[\u0400-\u06ff\u3040-\u9fff\uac00-\ud7af]", without_math)
    return len(words) > limit or len(foreign) > 4


_CHOICE_AT_START = re.compile(
    r"[\s*\"'$]*(?:\(([A-J])\)|([A-J])(?=\)|$|[.:,\u3002\uff0c]|[\u3040-\u9fff])|([B-HJ])(?=\s))"
)
_CHOICE_NAMED = re.compile(
    r"(?i:\b(?:answer|it'?s|it\s+is|choose|pick|select|option|choice|is|be)\b)\W+"
    r"(?i:(?:for\s+sure|definitely|clearly|option|choice|the|answer)\W+)*\**\(?([A-J])\)?(?![\w'])"
)
_CHOICE_ALSO = re.compile(
    r"\W*?(?:,|/|&|\bor\b|\band\b|\bbut\b)\W*(?i:(?:maybe|perhaps|possibly|also)\W+)?([A-J])(?![\w'])"
)
_NEGATED = re.compile(r"(?i)(?:not|n't|never|neither|nor)\s*(?:be|option|is)?\s*$")


def _choice(text: str) -> str | None:
    """Returns a leading letter or the last one that the text affirms, with the letters joined to it."""
    found = [
        match
        for match in _CHOICE_NAMED.finditer(text)
        if not _NEGATED.search(text[: match.start()]) and "not" not in match.group().lower()
    ]
    at_start = _CHOICE_AT_START.match(text)
    chosen = at_start or (found[-1] if found else None)
    if chosen is None:
        return None
    letters = [next(group for group in chosen.groups() if group)]
    position = chosen.end()
    while also := _CHOICE_ALSO.match(text, position):
        letters.append(also[1])
        position = also.end()
    return " , ".join(dict.fromkeys(letters))


def _bare(text: str) -> str | None:
    """Returns the whole text if it is short, one paragraph and not prose."""
    if not text or len(text) > 300 or "\n\n" in text or _NOT_PROSE.search(text):
        return None
    formulas = list(_MATH.finditer(text))
    if _is_prose(text) or len(formulas) > 1:
        return None
    # ``12 apples`` is bare; ``Special matrix: $...$`` is a sentence.
    return None if formulas and re.search(r"[^\W\d_]{2}", text[: formulas[0].start()]) else text


def _last_math(text: str) -> str | None:
    """Returns the last formula between maths delimiters, with those connected to it."""
    if _NOT_PROSE.search(_MATH.sub(" ", text)):
        return None
    spans = [
        (match.start(), match.end(), next(group for group in match.groups() if group).strip())
        for match in _MATH.finditer(text)
    ]
    spans = [span for span in spans if re.search(r"[\w\\]", span[2]) and not _is_prose(span[2], limit=1)]
    if not spans or _LAST_NUMBER.search(text, spans[-1][1]) or is_denied(text, *spans[-1][:2]):
        return None
    percent = re.match(r"\s*(?:\\?%|percent|pct)", text[spans[-1][1] :])
    return " , ".join(joined(spans, text)) + (" \\%" if percent else "")


def _last_number(text: str) -> str | None:
    """Returns the last number of the last line that has one, with the alternatives connected to it."""
    if _NOT_PROSE.search(text):
        return None
    lines = [line for line in text.split("\n") if re.search(r"\d", line)]
    if not lines:
        return None
    line = lines[-1]
    spans = [(match.start(), match.end(), match[1].strip()) for match in _LAST_NUMBER.finditer(line)]
    if not spans or is_denied(line, *spans[-1][:2]):
        return None
    return " , ".join(joined(spans, line))


READERS = {
    "tag": _tagged,
    "choice": _choice,
    "marker": _marked,
    "bare": _bare,
    "math": _last_math,
    "number": _last_number,
}
"""The forms in the order in which they are tried."""
