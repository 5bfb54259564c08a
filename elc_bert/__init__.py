"""ELC-BERT pretraining over DeepSpeed: model, optimizer, data and training loop."""

__version__ = "0.1.0"
