"""The export command."""

from pathlib import Path

from elc_bert.hub.card import CardMetadata
from elc_bert.hub.export import check_target, export
from elc_bert.hub.loading import load_model


def export_model(
    source: Path,
    folder: Path,
    *,
    dtype: str = "fp32",
    tokenizer: Path | None = None,
    variant: str | None = None,
    config: Path | None = None,
    force: bool = False,
    metadata: CardMetadata | None = None,
) -> None:
    """Write a model as a Hugging Face folder and print a line about it.

    Args:
        source: Model to export, see ``hub.loading.load_model``.
        folder: Folder to write.
        dtype: Precision of the weights, ``fp32`` or ``bf16``.
        tokenizer: Tokenizer file. By default the model's own.
        variant: Variant of a model of the reference implementation.
        config: JSON file with the sizes of the reference's ``model.bin``.
        force: Replace the files of an earlier export.
        metadata: License, languages and datasets for the model card.

    Raises:
        UserError: The model cannot be read, has no tokenizer, or the folder cannot be written.
    """
    check_target(folder, force)
    loaded = load_model(source, variant, config)
    export(loaded, loaded.tokenizer_path(tokenizer), folder, dtype, force, metadata=metadata)
    size = f"{loaded.model.num_parameters():,} parameters"
    print(f"{folder}: {loaded.model.config.variant}, {size}, {dtype}")
