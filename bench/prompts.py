"""Prompts of random common words: no two share a prefix, so no prefix cache can help, unless they
are told to."""

from __future__ import annotations

import random

COMMON_WORDS = """
about above across after again air all almost along also always animal answer around ask away back
because before began begin below between bird black blue boat body book both box boy bring brown
build call came car carry change children city close cold color come complete could country course
cover cross cut dark day deep did differ direction distance dog door down draw dry during each ear
early earth east easy eat end enough even every example eye face family far farm fast father feel
feet few field figure final find fire first fish five fly follow food form found four free friend
from front game garden gave girl give gold good got great green ground group grow half hand happen
hard head hear heat help here high hold home horse hot hour house hundred idea inch interest island
just keep kind king knew know land language large last late laugh learn leave left letter life light
line list listen little live long look love low machine made main make many map mark may mean
measure men might mile mind minute money moon more morning most mother mountain move much music must
name near need never new next night north note nothing notice number object ocean often old once
only open order other over page paper part pass pattern people perhaps person picture piece place
plain plan plane plant play point port power press problem produce product pull question quick rain
ran reach read ready real red remember rest right river road rock room round rule run said same saw
school science sea second see seem sentence serve set several shape ship short should show side
simple since sing sit six size sleep slow small snow some song soon sound south space special spell
stand star start state stay step still stone stood story street strong study such sun sure surface
table tail take talk teach tell ten test thing think thought thousand three through time together
told took top toward town travel tree true turn two under unit until use usual vowel voice walk war
warm watch water way week weight well went west wheel where which while white whole wind winter wood
word work world would write year young
"""
WORDS = COMMON_WORDS.split()


def random_prompts(count: int, words: int, *, seed: str, common_words: int = 0) -> list[str]:
    """`count` prompts of `words` words each, after `common_words` that are the same for all; the
    same seed, the same prompts."""
    rng = random.Random(seed)
    common = rng.choices(WORDS, k=common_words)
    return [" ".join(common + rng.choices(WORDS, k=words)) for _ in range(count)]
