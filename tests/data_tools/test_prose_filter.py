"""Filtering of documentation text into clean paragraphs."""

import pytest

from data_tools.prose_filter import paragraphs, prose_or_none


def test_a_paragraph_is_joined_and_a_bullet_starts_one():
    text = """
    The first line of a paragraph is followed by
    the second, with a hyphen-
    ated word.

    - One item of a list that goes
      on in the next line.
    - Another item of the list.
    """
    assert paragraphs(text) == [
        "The first line of a paragraph is followed by the second, with a hyphen-ated word.",
        "One item of a list that goes on in the next line.",
        "Another item of the list.",
    ]


@pytest.mark.parametrize(
    "left_out",
    [
        ">>> print('This is a doctest and it has output.')\nThis is the output of it.\n",
        "::\n\n    This is a literal block, however it reads.\n\n    It has two paragraphs.\n",
        ".. code-block:: python\n\n    This is the body of the directive.\n",
        "```python\nThis is fenced and so it is code.\n\nAll of it.\n```\n",
        ":param name: This is the text of the field, which\n    Goes on in the next line.\n",
        "name (str): This is an entry of a parameter list, which\n    Goes on in the next line.\n",
        "A Heading of the Text\n=====================\n",
        "## A Heading of the Text\n",
    ],
    ids=["doctest", "literal", "directive", "fence", "field", "parameter", "underlined", "heading"],
)
def test_text_that_is_not_prose_is_left_out_and_ends_a_paragraph(left_out):
    assert paragraphs(f"Text before it.\n\n{left_out}\nText after it.") == [
        "Text before it.",
        "Text after it.",
    ]


def test_descriptions_below_numpy_style_parameters_are_paragraphs_of_their_own():
    text = "Parameters\n----------\nx : array_like\n    The values to sort.\n"
    assert paragraphs(text) == ["x : array_like", "The values to sort."]


def test_the_body_of_an_admonition_is_prose():
    assert paragraphs(".. note::\n\n    This is worth knowing.\n") == ["This is worth knowing."]


@pytest.mark.parametrize(
    ("marked_up", "plain"),
    [
        (
            "Returns ``None`` when the *first* value is **not** set.",
            "Returns None when the first value is not set.",
        ),
        (
            "See :class:`~a.Thing` or :func:`the maker <a.make>` for the rest.",
            "See a.Thing or the maker for the rest.",
        ),
        (
            "Read the `guide <https://example.org>`_ before you begin [1]_.",
            "Read the guide before you begin.",
        ),
        (
            "Read the [guide](https://example.org) before you _ever_ begin.",
            "Read the guide before you ever begin.",
        ),
        ("The forms of it are the following ::", "The forms of it are the following:"),
        ("Names such as __init__ are left as they are.", "Names such as __init__ are left as they are."),
    ],
)
def test_inline_markup_is_removed(marked_up, plain):
    assert prose_or_none(marked_up) == plain


@pytest.mark.parametrize(
    "paragraph",
    [
        "Too short to keep.",
        "it does not begin with a capital letter.",
        "It does not end as a sentence of English does",
        "Visit https://example.org for the rest of the documentation of it.",
        "Assign x = f(y) to the name that you want to use.",
        "Copyright of the authors, who reserve all of their rights.",
        "Value    Meaning    Default of the value in the table.",
        "The x_1 y_2 z_3 w_4 v_5 are all of the names.",
        "Alpha beta gamma delta epsilon zeta eta theta.",
    ],
)
def test_text_that_does_not_read_like_english_is_dropped(paragraph):
    assert prose_or_none(paragraph) is None
