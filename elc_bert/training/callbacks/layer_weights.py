"""Heat maps of the layer weights."""

from elc_bert.engine.weights import layer_weights
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.run import Run


class LayerWeightsPicture(Callback):
    """Log the layer weights after the first step and every ``elc_bert.training.picture_every`` steps."""

    repeated_after_interruption = True

    def after_step(self, run: Run) -> None:
        """Log the weights as scalars and as a picture if they are due. Collective if they are."""
        if run.is_due(run.config.elc_bert.training.picture_every) or run.progress.step == 1:
            run.monitor.layer_weights(run.progress.step, layer_weights(run.engine))
