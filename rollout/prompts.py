"""Prompt texts, which are in ``configs/operator/prompts``."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from configs.examples import Example, read_examples
from configs.schema import PromptsConfig
from rollout.placeholders import PLACEHOLDERS, before_number, check_placeholders
from rollout.turns import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTexts:
    """The nine texts, each a ``str.format`` template with fixed placeholders.

    Raises:
        ValueError: If a text lacks a placeholder or holds an unknown one.
    """

    solve: str
    draft: str
    refine: str
    distil: str
    verify: str
    analyse: str
    analysis: str
    update: str
    select: str
    examples: tuple[Example, ...] = ()
    """Worked examples, which a call reads before its own question: a refinement those with drafts, a trace or
    a draft of the first round those without."""

    def __post_init__(self) -> None:
        for name in PLACEHOLDERS:
            check_placeholders(name, getattr(self, name))

    @property
    def shots(self) -> tuple[Turn, ...]:
        """Turns before ``solve_text``: question, answer, question, ... of the examples without drafts."""
        plain = (each for each in self.examples if not each.drafts)
        return _turns_of((self.solve_text(each.question), each.answer) for each in plain)

    @property
    def refine_shots(self) -> tuple[Turn, ...]:
        """Turns before ``refine_text``: the examples with drafts, as refinements of these."""
        refined = (each for each in self.examples if each.drafts)
        return _turns_of(
            (self.refine_text(each.question, join_drafts(self.draft_texts(each.drafts))), each.answer)
            for each in refined
        )

    def solve_text(self, question: str) -> str:
        return self.solve.format(question=question)

    def refine_text(self, question: str, workspace: str) -> str:
        return self.refine.format(question=question, workspace=workspace)

    def draft_texts(self, solutions: Sequence[str]) -> list[str]:
        """Returns the drafts as a workspace holds them, numbered from 1; within ``fence`` if there is one."""
        fence = self.fence(solutions)
        fenced = [f"{fence}\n{s}\n{fence}" for s in solutions] if fence else solutions
        return [self.draft.format(number=i, solution=s) for i, s in enumerate(fenced, start=1)]

    @property
    def before_number(self) -> str:
        """Word before a draft's number, casefolded; its signs if it has no word; else nothing."""
        return before_number(self.draft)

    def fence(self, solutions: Sequence[str]) -> str:
        """Returns the backticks that enclose every draft, more than any draft holds in a row.

        Empty if no draft could be read as several: if none contains the word before a draft's number
        ("draft", in any case). So an ordinary workspace costs nothing more.
        """
        head = self.before_number
        if not any(head in solution.casefold() for solution in solutions):
            return ""
        runs = (run for solution in solutions for run in re.findall("`+", solution))
        return "`" * max([3, *(len(run) + 1 for run in runs)])

    def distil_text(self, question: str, solutions: Sequence[str], kappa: int, previous: str = "") -> str:
        """Returns the prompt of a summary; with ``previous``, of one that updates this workspace."""
        drafts = join_drafts(self.draft_texts(solutions))
        if previous:
            return self.update.format(question=question, workspace=previous, drafts=drafts, kappa=kappa)
        return self.distil.format(question=question, drafts=drafts, kappa=kappa)

    def select_text(self, question: str, solutions: Sequence[str]) -> str:
        return self.select.format(question=question, drafts=join_drafts(self.draft_texts(solutions)))

    def verify_text(self, question: str, solution: str) -> str:
        return self.verify.format(question=question, solution=solution)

    def analyse_text(self, question: str, solution: str) -> str:
        return self.analyse.format(question=question, solution=solution)

    def analysis_text(self, draft: str, analysis: str) -> str:
        """Returns the workspace of sequential refinement with error analysis."""
        return self.analysis.format(draft=draft, analysis=analysis)


def prompt_texts(config: PromptsConfig) -> PromptTexts:
    """Returns the prompt texts of a run.

    Raises:
        ValueError: If a text has the wrong placeholders, or the file of examples does not exist or has a line
            without question and answer.
    """
    return PromptTexts(
        solve=config.solve,
        draft=config.draft,
        refine=config.refine,
        distil=config.distil,
        verify=config.verify,
        analyse=config.analyse,
        analysis=config.analysis,
        update=config.update,
        select=config.select,
        examples=read_examples(config.examples),
    )


def _turns_of(exchanges: Iterable[tuple[str, str]]) -> tuple[Turn, ...]:
    return tuple(
        turn for asked, answer in exchanges for turn in (Turn("user", asked), Turn("assistant", answer))
    )


def join_drafts(texts: Sequence[str]) -> str:
    """Joins the drafts of a workspace with a blank line between two."""
    return "\n\n".join(texts)
