"""Reading token datasets: indexed dataset, segments, order, masking, batches, steps."""
