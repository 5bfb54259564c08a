"""Languages of the sentence splitters."""

from elc_bert.utils.errors import UserError

SENTENCEX = """
    am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk
"""
"""ISO 639 codes of the languages for which sentencex 1.0 has rules."""
RELATED = {
    "ar": "acm aeb aeb-arab apc arq ary arz",
    "bn": "bpy",
    "ca": "oc",
    "da": "jut kl",
    "de": "als bar de-at de-ch de-formal dsb frr gsw hrx hsb ksh lb nds pdc pdt pfl rm sli stq vmf",
    "el": "pnt",
    "es": "an arn ast ay cbk-zam es-formal ext gn guc lad nah qu qug",
    "fi": "fit krl olo smn vot",
    "fr": """
        atj avk bci bm dua fon frc frp gcf gcr hke ht kab kbp ln lua mg pcd ses sg shy shy-latn ty wa wls wo
    """,
    "hi": "anp awa mag mai sa",
    "hy": "hyw",
    "it": "aae co egl eml fur lij lld lmo nap pms rgn roa-tara scn sdc sro vec",
    "kk": "kaa kk-arab kk-cn kk-cyrl kk-kz kk-latn kk-tr",
    "kn": "tcy",
    "my": "blk kjp ksw mnw",
    "nl": "li nds-nl nl-informal srn vls",
    "pl": "csb szl",
    "pt": "gl kea mwl pt-br tet vmw",
    "ru": """
        ab alt av ba bxr ce cv gld inh kjh koi krc kum kv lbe lez mdf mhr mrj myv os rut sah sjd sty tt
        tt-cyrl tyv udm xal
    """,
    "sk": "cs",
    "uk": "rue",
}
"""Codes of the languages for which sentencex 1.0 uses the rules of a related language, by those rules."""
OTHER = """
    aa ae af ak as az be bi bo br bs ch cr cu cy dv dz ee eo et eu fa ff fj fo fy ga gd gv ha he ho hr
    hu hz ia id ie ig ii ik io is iu jv ka kg ki kj km ko kr ks ku kw ky la lg lo lt lu lv mh mi mk mn
    ms mt na nb nd ne ng nn no nr nv ny oj om or pi ps rn ro rw sc sd se si sl sm sn so sq sr ss st su
    sv sw tg th ti tk tl tn to tr ts tw ug ur uz ve vi vo xh yi yo za zh zu
"""
"""All other codes of ISO 639-1. sentencex splits these languages by its rules for English."""
PUNKT = {
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "et": "estonian",
    "fi": "finnish",
    "fr": "french",
    "it": "italian",
    "ml": "malayalam",
    "nl": "dutch",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ru": "russian",
    "sl": "slovene",
    "sv": "swedish",
    "tr": "turkish",
}
"""Punkt's name of each language, by ISO 639 code."""

RULES = {code: code for code in SENTENCEX.split()} | {
    code: related for related, codes in RELATED.items() for code in codes.split()
}
"""Language whose rules sentencex uses, by code. Other codes use those of English."""


def language_code(language: str) -> str:
    """Return the code by which sentencex knows a language, such as ``de`` for ``DE`` and ``de_DE``.

    Raises:
        UserError: There is no such language.
    """
    code = language.lower().replace("_", "-")
    primary = code.partition("-")[0]
    for each in (code, primary):
        if each in RULES or each in OTHER.split():
            return each
    raise UserError(
        f"--language {language}: no such language; use its code in ISO 639-1, such as de or pt-br"
    )


def language_note(language: str) -> str:
    """Return a remark on a language without rules of its own for finding sentences, or an empty text."""
    code = language_code(language)
    rules = RULES.get(code, "en")
    if rules == code:
        return ""
    return (
        f"--language {language}: there are no rules for its sentences, those of {rules!r} are used; if the "
        "text has one sentence per line, use --sentences lines"
    )
