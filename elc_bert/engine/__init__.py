"""The one package that calls DeepSpeed and knows its internals."""
