"""Moses' rules for punctuation and tokens, adapted to English that is spelled correctly already.

They are separate from ``steps`` because importing sacremoses takes half a second, which would delay
``--help``.
"""

import re

from sacremoses import MosesDetokenizer, MosesPunctNormalizer


class Punctuation(MosesPunctNormalizer):  # type: ignore[misc]  # sacremoses has no type hints
    """Moses' table of Unicode punctuation, without its rules for spaces around ASCII punctuation.

    Those rules expect tokenized text and would damage correct spelling such as "word(s)", "f(x)" and ":)".
    """

    EXTRA_WHITESPACE = ((r" +", " "),)


class Detokenizer(MosesDetokenizer):  # type: ignore[misc]  # sacremoses has no type hints
    """Moses' detokenizer with an explicit list of English clitics.

    Moses joins every word that begins with an apostrophe to the previous word ("get 'em", "the 'old' one").
    It knows neither "n't" of the Penn Treebank nor a full stop that is followed by a closing quote.
    """

    IS_ENGLISH_CONTRACTION = re.compile(r"(?i)^(?:n't|'(?:s|m|d|t|re|ve|ll))\b")
    IS_PUNCT = re.compile(r"""^[,.?!:;\\%}\])]+["']?$""")
