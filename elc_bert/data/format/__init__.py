"""Files of a token dataset: indexed dataset, manifest, segment indexes and vocabulary.

``docs/data-format.md`` describes the files byte by byte.
"""
