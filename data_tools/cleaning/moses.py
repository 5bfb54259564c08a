"""Moses' rules for punctuation and tokens, fitted to English that is spelled well already.

Apart from `steps` because sacremoses takes half a second to import, which `--help` need not wait for.
"""

import re

from sacremoses import MosesDetokenizer, MosesPunctNormalizer


class Punctuation(MosesPunctNormalizer):
    """Moses' table of Unicode punctuation, without its rules about spaces around ASCII punctuation.

    Those take the text for tokens and would damage what is spelled well: "word(s)", "f(x)", ":)".
    """

    EXTRA_WHITESPACE = ((r" +", " "),)


class Detokenizer(MosesDetokenizer):
    """Moses' detokeniser with English clitics spelled out.

    Moses joins every word that begins with an apostrophe to the one before it ("get 'em", "the 'old'
    one"), and does not know Penn's "n't", nor a stop that has its closing quote already.
    """

    IS_ENGLISH_CONTRACTION = re.compile(r"(?i)^(?:n't|'(?:s|m|d|t|re|ve|ll))\b")
    IS_PUNCT = re.compile(r"""^[,.?!:;\\%}\])]+["']?$""")
