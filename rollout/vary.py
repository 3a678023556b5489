"""An operator that differs from problem to problem, so that a policy learns for more than one setting."""

import random
from dataclasses import dataclass, replace

from rollout.operators import Operator


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """What is drawn anew for each problem; empty leaves the operator's own value."""

    drafts: tuple[int, ...] = ()
    """The least and the most drafts of the first round (M)."""
    top_k: tuple[int, ...] = ()
    """The least and the most drafts that a distiller keeps (k)."""
    distillers: tuple[str, ...] = ()
    """Names to choose from."""

    def draw(self, operator: Operator, rng: random.Random) -> Operator:
        """``operator`` with values drawn uniformly from the ranges."""
        options = operator.options
        distil = options.distil
        if self.drafts:
            options = replace(options, schedule=(rng.randint(*self.drafts), *options.schedule[1:]))
        if self.top_k:
            distil = replace(distil, top_k=rng.randint(*self.top_k))
        if self.distillers:
            distil = replace(distil, name=rng.choice(self.distillers))
        return type(operator)(replace(options, distil=distil))
