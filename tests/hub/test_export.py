"""Exported models, as loaded by transformers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from elc_bert.checkpoint.load_model import newest_checkpoint
from elc_bert.config.schema import ModelConfig
from elc_bert.data.format.vocabulary import SPECIAL_TOKENS
from elc_bert.hub.export import export
from elc_bert.hub.loading import load_model
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.loaded import LoadedModel
from elc_bert.utils.errors import UserError
from tests.support.golden_model import GOLDEN, VARIANTS, GoldenModel

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = REPOSITORY / ".venv"
"""Environment in which `make setup` installs older versions of transformers, in folders of their own."""


def installed(version: str):
    """Return a test parameter for an older version of transformers."""
    missing = not (ENVIRONMENT / f"transformers-{version}").is_dir()
    reason = f"needs transformers {version}, which make setup installs"
    return pytest.param(version, marks=pytest.mark.skipif(missing, reason=reason))


VERSIONS = ["pinned", installed("4.57")]
"""The last version of each major version of transformers."""
OLDEST = [installed("4.51"), installed("4.40")]
"""The version of the BabyLM challenges of 2025 and 2026, and the oldest one in which exports work."""
SIZES = {
    "vocab_size": 512,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "position_bucket_size": 8,
}
COMPUTE = """
import sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

def compute(place):
    folder = str(place / "export")
    given = load_file(place / "inputs.safetensors")
    ids, mask = given["input_ids"], given["attention_mask"]
    found = {"version": torch.tensor([int(transformers.__version__.split(".")[0])])}
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    encoder = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        found["logits"] = padded.logits
        found["last"] = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        found["embedded"] = padded.hidden_states[0]
        found["unpadded"] = model(input_ids=ids[:1, : int(mask[0].sum())]).logits
    found = {name: tensor.contiguous().float() for name, tensor in found.items()}
    save_file(found, place / "outputs.safetensors")

for place in map(Path, sys.argv[1:]):
    compute(place)
"""
"""Program that loads the export in each folder and saves its outputs there."""


def random_model(variant: str, **changes) -> ElcBertForMaskedLM:
    torch.manual_seed(3)
    model = ElcBertForMaskedLM(ModelConfig(**{"variant": variant, **SIZES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def in_transformers(version: str, code: str, *arguments) -> subprocess.CompletedProcess[str]:
    """Run code with a version of transformers, without network access and without this project."""
    path = "" if version == "pinned" else str(ENVIRONMENT / f"transformers-{version}")
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["HF_MODULES_CACHE"] = str(Path(arguments[0]).parent / f"modules-{version}")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(
        command, cwd=Path(arguments[0]).parent, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result


def computed(version: str, places: list[Path]) -> list[dict[str, torch.Tensor]]:
    """Return the outputs of several exports, computed in one process because its start is slow."""
    in_transformers(version, COMPUTE, *places)
    return [load_file(place / "outputs.safetensors") for place in places]


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_equal_those_of_the_training_model(version, tiny_tokenizer, tmp_path):
    ids = torch.randint(7, 512, (3, 90))  # longer than max_position_embeddings
    lengths = torch.tensor([50, 90, 7])
    mask = torch.arange(90) < lengths[:, None]
    models = {variant: random_model(variant) for variant in VARIANTS}
    for variant, model in models.items():
        export(LoadedModel(model, None), tiny_tokenizer, tmp_path / variant / "export")
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        save_file(inputs, tmp_path / variant / "inputs.safetensors")

    outputs = computed(version, [tmp_path / variant for variant in VARIANTS])

    for model, found in zip(models.values(), outputs, strict=True):
        assert int(found["version"]) == (5 if version == "pinned" else 4)
        with torch.no_grad():
            hidden = model.encoder(ids, mask)
            logits = model(ids, mask, torch.arange(ids.numel())).view(3, 90, -1)
            alone = model(ids[:1, :50], mask[:1, :50], torch.arange(50))
        assert (found["last"] - hidden)[mask].abs().max() <= 1e-5, model.config.variant
        assert (found["logits"] - logits)[mask].abs().max() <= 1e-5, model.config.variant
        assert (found["unpadded"][0] - alone).abs().max() <= 1e-5, model.config.variant


def reference_parameters(variant: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the golden model's parameters under the reference's names, and its configuration."""
    with safe_open(GOLDEN / f"model_{variant}.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("param.")]  # noqa: SIM118
        parameters = {name.removeprefix("param."): file.get_tensor(name) for name in names}
        return parameters, json.loads(file.metadata()["config"])


def word_tokenizer(path: Path, size: int) -> Path:
    """Save a tokenizer with this number of words, which may be smaller than a byte-level vocabulary."""
    vocabulary = [*SPECIAL_TOKENS, *(f"w{number}" for number in range(size - len(SPECIAL_TOKENS)))]
    model = WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="[UNK]")
    Tokenizer(model).save(str(path))
    return path


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_values_survive_import_and_export(version, tmp_path):
    tokenizer = word_tokenizer(tmp_path / "tokenizer.json", 96)
    for variant in VARIANTS:
        golden, place = GoldenModel(variant), tmp_path / variant
        parameters, config = reference_parameters(variant)
        published = place / "published"
        published.mkdir(parents=True)
        (published / "config.json").write_text(json.dumps({"model_type": "ltgbert", **config}))
        prefixed = {f"model.{name}": tensor for name, tensor in parameters.items()}
        save_file(prefixed, published / "model.safetensors")
        export(load_model(published, variant), tokenizer, place / "export")
        inputs = {"input_ids": golden.input_ids, "attention_mask": golden.attention_mask.long()}
        save_file(inputs, place / "inputs.safetensors")

    outputs = computed(version, [tmp_path / variant for variant in VARIANTS])

    for golden, found in zip(map(GoldenModel, VARIANTS), outputs, strict=True):
        variant = golden.config.variant
        assert (found["embedded"] - golden.embedding_output).abs().max() <= 2e-5, variant
        assert (found["last"] - golden.final_hidden).abs().max() <= 2e-5, variant
        assert (found["logits"].flatten(0, 1)[golden.positions] - golden.logits).abs().max() <= 2e-5, variant


USES = """
import sys, torch
from pathlib import Path
from transformers import (AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoModelForTokenClassification,
    AutoTokenizer, pipeline)
folder = sys.argv[1]
trust = {"trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer.model_max_length == 64
pair = tokenizer("Baden fi.", "Gor.", return_tensors="pt")
ids = pair["input_ids"][0].tolist()
assert ids[0] == 1 and ids[-1] == 2 and ids.count(2) == 2
assert set(pair) == {"input_ids", "attention_mask"}

guesses = pipeline("fill-mask", model=folder, **trust)("Baden [MASK] fi.")
assert len(guesses) == 5 and all(0 < guess["score"] < 1 for guess in guesses)

text = "Baden fi gor."  # offsets leave out the space in front of a word
offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
assert "".join(text[begin:end] for begin, end in offsets) == "Badenfigor.", offsets

model = AutoModelForMaskedLM.from_pretrained(folder, **trust).eval()
batch = tokenizer(["Baden fi gor.", "Fi."], padding=True, return_tensors="pt")
labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
found = model(**batch, labels=labels, output_hidden_states=True, output_attentions=True)
expected = torch.nn.functional.cross_entropy(found.logits.flatten(0, 1), labels.flatten())
assert torch.allclose(found.loss, expected)
assert len(found.hidden_states) == 4 and len(found.attentions) == 3
assert torch.allclose(found.attentions[0].sum(-1), torch.ones(()), atol=1e-5)
assert isinstance(model(**batch, return_dict=False), tuple)
embedded = model(attention_mask=batch["attention_mask"],
    inputs_embeds=model.get_input_embeddings()(batch["input_ids"]))
assert torch.allclose(embedded.logits, found.logits, atol=1e-6)

model.save_pretrained(folder + "-again")
tokenizer.save_pretrained(folder + "-again")
again = AutoModelForMaskedLM.from_pretrained(folder + "-again", **trust).eval()
assert torch.equal(again(**batch).logits, found.logits)

before = found.logits
model.resize_token_embeddings(520)
after = model(**batch).logits
assert after.shape[-1] == 520 and torch.equal(after[..., :512], before)
again = AutoModelForMaskedLM.from_pretrained(folder + "-again", **trust)
again.resize_token_embeddings(520)
again.save_pretrained(folder + "-resized")
resized = AutoModelForMaskedLM.from_pretrained(folder + "-resized", **trust).eval()
assert torch.equal(resized(**batch).logits[..., :512], before)

model = AutoModelForMaskedLM.from_pretrained(folder, **trust)
for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
gradients = []
for keep in (True, False):
    if not keep:
        model.gradient_checkpointing_enable()
    model.train().zero_grad()
    model(**batch, labels=labels).loss.backward()
    gradients.append([p.grad.clone() for p in model.parameters()])
for kept, recomputed in zip(*gradients):
    assert torch.allclose(kept, recomputed, atol=1e-6)

def check(auto, inputs, shape, **labels):
    model = auto.from_pretrained(folder, **trust)
    trained = dict(AutoModel.from_pretrained(folder, **trust).named_parameters())
    for name, parameter in model.encoder.named_parameters():
        assert torch.equal(parameter, trained[name]), name
    result = model(**inputs, **labels)
    assert result[1].shape == shape and torch.isfinite(result.loss)
    result.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
length = batch["input_ids"].shape[1]
check(AutoModelForSequenceClassification, batch, (2, 2), labels=torch.tensor([0, 1]))
check(AutoModelForSequenceClassification, batch, (2, 2), labels=torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
check(AutoModelForTokenClassification, batch, (2, length, 2), labels=labels.clamp(-100, 1))
check(AutoModelForQuestionAnswering, batch, (2, length), start_positions=torch.tensor([0, 1]),
    end_positions=torch.tensor([1, 99]))
choices = {name: tensor[None] for name, tensor in batch.items()}
check(AutoModelForMultipleChoice, choices, (1, 2), labels=torch.tensor([1]))
"""
"""Program that uses an export in typical ways, with assertions."""


@pytest.mark.parametrize("version", [*VERSIONS, *OLDEST])
def test_typical_uses_of_an_export(version, tiny_tokenizer, tmp_path):
    # This variant has every kind of parameter.
    export(LoadedModel(random_model("weighted_output"), None), tiny_tokenizer, tmp_path / "export")
    in_transformers(version, USES, tmp_path / "export")
    # A model that is saved again is a complete export, too.
    in_transformers(version, USES, tmp_path / "export-again")


FINE_TUNE = """
import argparse, inspect, sys, torch
from pydoc_data.topics import topics
from transformers import (AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer,
    TrainingArguments)
folder = sys.argv[1]
torch.manual_seed(0)
# The task: English prose, or a program? Both come with every Python.
paragraphs = [" ".join(part.split()) for text in topics.values() for part in text.split("\\n\\n")]
prose = [each for each in paragraphs if 8 <= len(each.split()) <= 20 and each[0].isupper()]
lines = [line for line in inspect.getsource(argparse).splitlines() if line.strip()]
code = [" ".join(lines[i:i + 2]) for i in range(0, len(lines), 2)]
tokenizer = AutoTokenizer.from_pretrained(folder)
def examples(part):
    texts = [(text, label) for pair in zip(prose[part], code[part]) for text, label in zip(pair, (0, 1))]
    return [{**tokenizer(text, truncation=True), "label": label} for text, label in texts]
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
arguments = TrainingArguments(folder + "-trainer", max_steps=20, per_device_train_batch_size=16,
    learning_rate=3e-3, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no")
trainer = Trainer(model, arguments, train_dataset=examples(slice(160)),
    data_collator=DataCollatorWithPadding(tokenizer))
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert len(losses) == 20
assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), losses
held_out = examples(slice(160, 240))
found = trainer.predict(held_out).predictions.argmax(-1)
right = (torch.from_numpy(found) == torch.tensor([each["label"] for each in held_out])).float().mean()
assert right > 0.9, right
print(sum(losses[:5]) / 5, sum(losses[-5:]) / 5, right)
"""


def test_the_trainer_fine_tunes_a_classifier(tiny_tokenizer, tmp_path):
    export(LoadedModel(random_model("zero"), None), tiny_tokenizer, tmp_path / "export")
    in_transformers("pinned", FINE_TUNE, tmp_path / "export")


def test_export_in_bfloat16(tiny_tokenizer, tmp_path):
    model = random_model("zero")
    export(LoadedModel(model, None), tiny_tokenizer, tmp_path / "export", dtype="bf16")
    for name, tensor in load_file(tmp_path / "export/model.safetensors").items():
        ours = model.get_parameter("head.decoder.bias" if name == "head.bias" else name)
        assert torch.equal(tensor, ours.bfloat16()), name
    assert json.loads((tmp_path / "export/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_an_export_can_be_loaded_again(tiny_tokenizer, tmp_path):
    model = random_model("weighted_output")
    export(LoadedModel(model, None), tiny_tokenizer, tmp_path / "export")
    loaded = load_model(tmp_path / "export")
    assert loaded.model.config == model.config
    assert loaded.tokenizer == tmp_path / "export/tokenizer.json"
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_existing_folders_are_only_replaced_with_force(tiny_tokenizer, tmp_path):
    loaded = LoadedModel(random_model("zero"), None)
    export(loaded, tiny_tokenizer, tmp_path / "export")
    with pytest.raises(UserError, match=r"export: exists; .*--force"):
        export(loaded, tiny_tokenizer, tmp_path / "export")
    written = {path.name for path in (tmp_path / "export").iterdir()}
    (tmp_path / "export/.git").mkdir()
    (tmp_path / "export/.git/HEAD").write_text("ref")
    (tmp_path / "export/notes.txt").write_text("mine")
    os.symlink("export", tmp_path / "link")
    for folder in ("export", "link"):
        export(LoadedModel(random_model("base"), None), tiny_tokenizer, tmp_path / folder, force=True)
        assert load_model(tmp_path / "export").model.config.variant == "base"
        assert {path.name for path in (tmp_path / "export").iterdir()} == written | {".git", "notes.txt"}
        assert (tmp_path / "export/.git/HEAD").read_text() == "ref"
        assert (tmp_path / "export/notes.txt").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "link").unlink()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/letter").touch()
    with pytest.raises(UserError, match="letters: exists and is not an earlier export"):
        export(loaded, tiny_tokenizer, tmp_path / "letters", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "letters"]


def test_export_of_a_real_run_has_a_card(tiny_run, tmp_path):
    command = [sys.executable, "launch/export.py", tiny_run.directory, tmp_path / "export"]
    result = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    card = (tmp_path / "export/README.md").read_text()
    record = json.loads((newest_checkpoint(tiny_run.directory) / "run.json").read_text())
    words = record["progress"]["words_seen"]
    assert words > 4 * 8
    for fact in ("| steps |", "| tokens seen |", "| held-out loss |", f"| words seen | {words:,}"):
        assert fact in card
    assert matplotlib.image.imread(tmp_path / "export/layer_weights.png").std() > 0
    again = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert "--force" in again.stderr


def test_all_files_have_the_permissions_of_the_umask(tiny_tokenizer, tmp_path):
    for mask, expected in ((0o022, 0o644), (0o007, 0o660)):
        folder, before = tmp_path / f"{mask}", os.umask(mask)
        try:
            export(LoadedModel(random_model("zero"), None), tiny_tokenizer, folder)
        finally:
            os.umask(before)
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert modes == dict.fromkeys(modes, expected)
        assert "model.safetensors" in modes


def test_the_header_of_the_card_names_license_languages_and_datasets(tiny_run, tmp_path):
    options = ["--license", "mit", "--language", "en", "de", "--dataset", "nilq/babylm-10M"]
    command = [
        sys.executable,
        "launch/export.py",
        str(tiny_run.directory),
        str(tmp_path / "export"),
        *options,
    ]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    header = (tmp_path / "export/README.md").read_text().split("---\n")[1]
    for line in ('license: "mit"', 'language: ["en", "de"]', 'datasets: ["nilq/babylm-10M"]'):
        assert line in header.splitlines()


def test_the_card_shows_facts_as_they_are(tiny_tokenizer, tmp_path):
    facts = {"data": "a|b <script>x</script> & [c](d)", "no\nte": "two\nlines"}
    export(LoadedModel(random_model("zero"), None), tiny_tokenizer, tmp_path / "a_b", facts=facts)
    card = (tmp_path / "a_b/README.md").read_text()
    assert "# a\\_b" in card.splitlines()
    assert r"| data | a\|b &lt;script&gt;x&lt;/script&gt; &amp; \[c\](d) |" in card.splitlines()
    assert "| no te | two lines |" in card.splitlines()
    assert "license:" not in card


FILL = """
import json, sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder, texts, result = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
found = []
for text in json.load(open(texts)):
    encoded = tokenizer(text, return_tensors="pt")
    at = int((encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero())
    with torch.no_grad():
        best = int(model(**encoded).logits[0, at].argmax())
    found.append([encoded["input_ids"][0].tolist(), best])
json.dump(found, open(result, "w"))
"""
"""Program that predicts the word at the ``[MASK]`` of each text with an export."""


def test_a_mask_in_the_text_is_predicted_like_a_mask_in_the_ids(tiny_text, tiny_tokenizer, tmp_path):
    model = random_model("zero")
    export(LoadedModel(model, None), tiny_tokenizer, tmp_path / "export")
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer))
    texts, expected = [], []
    for line in tiny_text.read_text(encoding="utf-8").splitlines():
        encoding = tokenizer.encode(line, add_special_tokens=False)
        words = [i for i, token in enumerate(encoding.tokens) if token[0] == "Ġ"]
        for place in range(0, len(words) - 1, 3):
            first, after = words[place], words[place + 1]
            if after > first + 1:
                continue  # the word is several tokens
            ids = [1, *encoding.ids[:first], 4, *encoding.ids[after:], 2]
            inputs = torch.tensor([ids])
            with torch.no_grad():
                logits = model(inputs, torch.ones_like(inputs, dtype=torch.bool), torch.tensor([first + 1]))
            before = line[: encoding.offsets[first - 1][1]] if first else ""
            texts.append(f"{before} [MASK] {line[encoding.offsets[after][0] :].lstrip()}".strip())
            expected.append([ids, int(logits[0].argmax())])
    assert len(texts) > 200
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    files = [tmp_path / name for name in ("export", "texts.json", "found.json")]
    in_transformers("pinned", FILL, *files)
    assert json.loads((tmp_path / "found.json").read_text()) == expected


def test_a_run_is_exported_from_any_directory(tiny_run, tmp_path):
    # The run is moved below another directory, together with the files that its relative paths name.
    run = tmp_path / "work/runs/one"
    shutil.copytree(tiny_run.directory, run)
    (tmp_path / "work/data").mkdir()
    record = json.loads((newest_checkpoint(run) / "run.json").read_text())
    shutil.copy(record["config"]["elc_bert"]["data"]["tokenizer"], tmp_path / "work/data/tokenizer.json")
    record["config"]["elc_bert"]["data"]["tokenizer"] = "data/tokenizer.json"
    record["config"]["elc_bert"]["training"]["output_dir"] = "runs/one"
    (newest_checkpoint(run) / "run.json").write_text(json.dumps(record))
    script = str(REPOSITORY / "launch/export.py")
    places = {
        tmp_path: "work/runs/one",
        run: ".",
        tmp_path / "work/data": f"../runs/one/checkpoints/{newest_checkpoint(run).name}",
    }
    for place, source in places.items():
        command = [sys.executable, script, source, str(tmp_path / "export"), "--force"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "export/tokenizer.json").is_file()
