"""Special tokens, and loading and checking of the tokenizer file."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.tokenizer_identity import is_tokenizer_of, tokenizer_sha256
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import read_regular

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNK, CLS, SEP, PAD, MASK, PAR, TAB = range(7)
"""Ids of the special tokens in tokenizers that this project trains."""
SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[PAR]", "[TAB]")
"""Names of these special tokens, in the order of their ids."""

TRAIN = "python -m data_tools tokenizer --input TEXT --output tokenizer.json"
"""Command that trains a tokenizer."""


@dataclass(frozen=True)
class SpecialNames:
    """Names of the special tokens in a tokenizer file, by role."""

    unk: str = "[UNK]"
    """Token for text that the vocabulary cannot spell."""
    cls: str = "[CLS]"
    """First token of a sample."""
    sep: str = "[SEP]"
    """Last token of a sample."""
    pad: str = "[PAD]"
    """Padding."""
    mask: str = "[MASK]"
    """Replacement of a masked token."""
    par: str | None = "[PAR]"
    """Token at the end of a paragraph; None if the ends of paragraphs are not marked."""
    tab: str | None = "[TAB]"
    """Token at the start of an indented paragraph; None if indentation is not marked."""

    @classmethod
    def from_mapping(cls, names: Mapping[str, str | None]) -> "SpecialNames":
        """Return the names in a mapping by role; roles that it leaves out have their usual names."""
        return cls(**names)  # type: ignore[arg-type]

    def changes(self) -> dict[str, str | None]:
        """Return the names that differ from the usual ones, by role."""
        usual = asdict(USUAL_NAMES)
        return {role: name for role, name in asdict(self).items() if name != usual[role]}


USUAL_NAMES = SpecialNames()
"""Names in tokenizers that this project trains."""
ROLES = tuple(field.name for field in fields(SpecialNames))
"""Roles of special tokens."""
OPTIONAL_ROLES = ("par", "tab")
"""Roles that a tokenizer need not have."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens of a vocabulary."""

    unk: int = UNK
    """Token for text that the vocabulary cannot spell."""
    cls: int = CLS
    """First token of a sample."""
    sep: int = SEP
    """Last token of a sample."""
    pad: int = PAD
    """Padding."""
    mask: int = MASK
    """Replacement of a masked token."""
    par: int | None = PAR
    """End of a paragraph; None if the vocabulary has no such token."""
    tab: int | None = TAB
    """Indentation; None if the vocabulary has no such token."""

    @property
    def never_masked(self) -> frozenset[int]:
        """Ids that are never masked. ``[TAB]`` is not among them, as in the reference."""
        return self.never_drawn | ({self.par} if self.par is not None else frozenset())

    @property
    def never_drawn(self) -> frozenset[int]:
        """Ids that are never random replacements. ``[PAR]`` and ``[TAB]`` can be, as in the reference."""
        return frozenset((self.unk, self.cls, self.sep, self.pad, self.mask))

    @property
    def all(self) -> frozenset[int]:
        """Ids of all special tokens."""
        return self.never_masked | ({self.tab} if self.tab is not None else frozenset())


USUAL_TOKENS = SpecialTokens()
"""Ids in tokenizers that this project trains."""


def load_tokenizer(path: str | os.PathLike[str], names: SpecialNames | None = USUAL_NAMES) -> "Tokenizer":
    """Load a tokenizer in the JSON format of the ``tokenizers`` library.

    Its special tokens are special tokens in text, too; ``TextTokenizer`` treats them as text.

    Args:
        path: Path of the file.
        names: Names of its special tokens; None if they are not needed.

    Raises:
        UserError: The file is missing, unreadable or of another format, or lacks a special token.
    """
    from tokenizers import Tokenizer

    try:
        text = read_regular(path).decode("utf-8-sig")  # some editors add a byte-order mark
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the tokenizer: {error.strerror}; give a tokenizer.json"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a tokenizer: not UTF-8 text; give a tokenizer.json") from None
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers 0.23 raises plain Exception
        raise UserError(
            f"{path}: not a tokenizer of the tokenizers library: {error}; give a tokenizer.json"
        ) from None
    size, highest = tokenizer.get_vocab_size(), max(tokenizer.get_vocab().values(), default=-1)
    if highest >= size:
        raise UserError(
            f"{path}: {size} subwords, but ids up to {highest}, so some ids are missing; "
            f"train one with: {TRAIN}"
        )
    # The file may enable truncation and padding, but this project cuts and pads sequences itself.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if names is not None:
        _check_special_tokens(tokenizer, names, path)
    return tokenizer


def special_tokens(tokenizer: "Tokenizer", names: SpecialNames = USUAL_NAMES) -> SpecialTokens:
    """Return the ids of the special tokens of a tokenizer that was loaded with these names."""
    ids: dict[str, Any] = {role: _id(tokenizer, name) for role, name in asdict(names).items()}
    return SpecialTokens(**ids)


def _id(tokenizer: "Tokenizer", name: str | None) -> int | None:
    return None if name is None else tokenizer.token_to_id(name)


def _check_special_tokens(tokenizer: "Tokenizer", names: SpecialNames, path: str | os.PathLike[str]) -> None:
    """Check that the tokenizer encodes the name of each special token as one token of its own.

    A special token in the vocabulary that the file does not declare as one is declared here.
    """
    by_role = asdict(names)
    usual = asdict(USUAL_NAMES)
    role_of: dict[str, str] = {}
    for role, name in by_role.items():
        if name is None or (role in OPTIONAL_ROLES and name == usual[role] and _id(tokenizer, name) is None):
            continue
        if _id(tokenizer, name) is None:
            known = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
            raise UserError(
                f"{path}: has no token {name} for the role {role} (its special tokens: "
                f"{' '.join(known[:12]) or 'none'}); name the token of that role in "
                f"elc_bert.data.special_tokens.{role}, or for build with --special-tokens {role}=NAME, or "
                f"train one with: {TRAIN}"
            )
        other = role_of.setdefault(name, role)
        if other != role and {other, role} != {"cls", "sep"}:
            raise UserError(
                f"elc_bert.data.special_tokens: {other} and {role} are both {name}; name two different tokens"
            )
    declared = {each.content for each in tokenizer.get_added_tokens_decoder().values() if each.special}
    tokenizer.add_special_tokens([name for name in role_of if name not in declared])
    for name in role_of:
        text, number = f"a {name} a", _id(tokenizer, name)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if number not in ids:
            raise UserError(
                f"{path}: encodes {text!r} as the ids {ids}, without id {number}; declare {name} in "
                "added_tokens with special: true and normalized: false"
            )


def check_tokenizer(dataset: IndexedDataset, tokenizer_path: str | os.PathLike[str]) -> None:
    """Check that a dataset was built with the given tokenizer, or with one that encodes text in the same way.

    A dataset built elsewhere, which has no manifest, passes.

    Raises:
        UserError: The vocabulary or the way in which text is cut differs from that of the dataset.
    """
    manifest = dataset.manifest
    size = load_tokenizer(tokenizer_path, None).get_vocab_size()
    if manifest.vocab_size is not None and manifest.vocab_size != size:
        raise UserError(
            f"{tokenizer_path}: {size} subwords, but {dataset.prefix} was built with a vocabulary of "
            f"{manifest.vocab_size}; give the dataset's tokenizer or build the dataset again"
        )
    if not is_tokenizer_of(manifest, tokenizer_path):
        found, expected = tokenizer_sha256(tokenizer_path), manifest.tokenizer_sha256 or ""
        how = "the dataset does not say whether they encode text alike"
        if manifest.tokenizer_fingerprint is not None:
            how = "they encode text differently"
        raise UserError(
            f"{tokenizer_path}: not the tokenizer that {dataset.prefix} was built with (sha256 {found[:12]}, "
            f"expected {expected[:12]}; {how}); give that one or build the dataset again"
        )
