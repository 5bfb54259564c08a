"""Entry points: parse the command line, call the library, exit.

The installed package is called ``elc_bert_launch``.
"""
