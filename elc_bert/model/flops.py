"""Number of floating-point operations of a training step, for throughput figures."""

from elc_bert.config.schema import ModelConfig


def flops_per_token(config: ModelConfig, sequence_length: int, masked_share: float) -> float:
    """Return the number of floating-point operations per token, forward and backward together.

    Only matrix products count: in each layer the four attention projections, the three feed-forward
    matrices, the attention scores and their relative-position terms; and the head, which is applied to a
    fraction ``masked_share`` (0 to 1) of the positions.
    """
    d, m = config.hidden_size, config.intermediate_size
    layers, vocabulary = config.num_hidden_layers, config.vocab_size
    projections = 6 * layers * (4 * d * d + 3 * d * m)
    head = 6 * masked_share * (d * d + d * vocabulary)
    scores = 3 * layers * (4 * sequence_length * d + 4 * (2 * config.position_bucket_size - 1) * d)
    return projections + head + scores
