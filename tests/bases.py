"""A tiny base model of each family, with random weights: configuration, weights and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import WORDS

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
BERT_LIKE = SIZE | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# Positions of these begin after the padding token's id.
ROBERTA_LIKE = BERT_LIKE | {"max_position_embeddings": 66}
DECODER = SIZE | {"num_key_value_heads": 1, "head_dim": 16}
# Of each family the configuration's class, its fields, and the layers that LoRA takes.
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "bert": ("BertConfig", BERT_LIKE, ["query", "value"]),
    "distilbert": (
        "DistilBertConfig",
        {
            **{"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
            **{"max_position_embeddings": 64, "dropout": 0.0, "attention_dropout": 0.0},
            "seq_classif_dropout": 0.0,
        },
        ["q_lin", "v_lin"],
    ),
    "albert": (
        "AlbertConfig",
        BERT_LIKE | {"embedding_size": 16, "classifier_dropout_prob": 0.0},
        ["query", "value"],
    ),
    "roberta": ("RobertaConfig", ROBERTA_LIKE, ["query", "value"]),
    "xlm-roberta": ("XLMRobertaConfig", ROBERTA_LIKE, ["query", "value"]),
    "electra": ("ElectraConfig", BERT_LIKE | {"embedding_size": 16}, ["query", "value"]),
    "mpnet": ("MPNetConfig", ROBERTA_LIKE, ["q", "v"]),
    "deberta-v2": (
        "DebertaV2Config",
        BERT_LIKE
        | {
            **{"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
            **{"position_biased_input": False, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
            "pooler_dropout": 0.0,
        },
        ["query_proj", "value_proj"],
    ),
    "modernbert": ("ModernBertConfig", SIZE, ["Wqkv", "Wo"]),
    "llama": ("LlamaConfig", DECODER, ["q_proj", "v_proj"]),
    "qwen2": ("Qwen2Config", DECODER, ["q_proj", "v_proj"]),
    "qwen3": ("Qwen3Config", DECODER, ["q_proj", "v_proj"]),
    "gemma": ("GemmaConfig", DECODER, ["q_proj", "v_proj"]),
}
DECODERS = ("llama", "qwen2", "qwen3", "gemma")
PADDED_BY_1 = ("roberta", "xlm-roberta", "mpnet")
WITHOUT_PADDING_TOKEN = ("llama",)


def make_base(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """Write a two-layer base of a family with the fifteen words of the tests as its vocabulary."""
    import torch
    import transformers

    tokenizer = make_tokenizer(family)
    name, fields, _ = FAMILIES[family]
    ids = {
        "pad_token_id": tokenizer.pad_token_id if family not in DECODERS else None,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
    }
    config = getattr(transformers, name)(
        **{"vocab_size": len(tokenizer), **fields, **ids, **changes}
    )
    torch.manual_seed(seed)
    options = {"add_pooling_layer": False} if family in PADDED_BY_1 else {}
    transformers.AutoModel.from_config(config, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(family: str = "bert") -> Any:
    """Return a tokenizer of whole words; a decoder's begins a line and does not end it.

    Qwen2's is of bytes: transformers reads its files with no other class.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    if family in PADDED_BY_1:
        special[:2] = reversed(special[:2])
    units = sorted(pre_tokenizers.ByteLevel.alphabet()) if family == "qwen2" else WORDS
    vocabulary = {unit: index for index, unit in enumerate([*special, *units])}
    words = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    if family not in WITHOUT_PADDING_TOKEN:
        words["pad_token"] = "[PAD]"
    if family == "qwen2":
        return Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=64, **words)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = "" if family in DECODERS else " [SEP]"
    backend.post_processor = processors.TemplateProcessing(
        single=f"[CLS] $A{ends}",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **words)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"lora.use_rslora": True},
    "dora": {"lora.use_dora": True},
    "bias all": {"lora.bias": "all"},
    "own modules": {},  # see OWN_MODULES
    "all-linear": {"lora.target_modules": "all-linear"},
    "LoRA off": {"lora.enable": False},
}
# What lies in a fresh module, around one, or is met by the end of many names.
OWN_MODULES = {
    "distilbert": {"cls": ["pre_classifier"], "mean": ["sa_layer_norm"]},
    "albert": {"cls": ["pooler"]},
    "roberta": {"cls": ["classifier.dense"]},
    "xlm-roberta": {"cls": ["classifier", "LayerNorm"]},
    "mpnet": {"cls": ["classifier.out_proj"]},
    "deberta-v2": {"cls": ["pooler"]},
    "modernbert": {"cls": ["head"], "mean": ["final_norm"]},
    "qwen2": {"cls": ["embed_tokens"], "mean": ["embed_tokens"]},
}


def changes(family: str, pooling: str, kind: str) -> dict[str, Any]:
    """Return what `conftest.train_params` has to change for a member of the matrix."""
    changed = {
        "model.pooling": pooling,
        "lora.target_modules": FAMILIES[family][2],
        **KINDS[kind],
    }
    if kind == "own modules":
        other = ["norm" if family in DECODERS else "LayerNorm"]
        changed["lora.modules_to_save"] = OWN_MODULES.get(family, {}).get(pooling, other)
    return changed


def train_in_process(base: Path, root: Path, max_length: int = 8, **changed: Any) -> Path:
    """Train two steps without DeepSpeed and return the classifier's folder, as it is registered.

    Args:
        base: From `make_base`.
        root: The folder of the results.
        max_length: Tokens a line keeps; the made-up lines have more.
        changed: See `changes`.
    """
    from transformers import TrainingArguments, set_seed

    from account_tax.ledger.tokens import load_base_tokenizer
    from account_tax.pipelines.register.nodes import complete_settings, write_manifest
    from account_tax.pipelines.train import training_core as core
    from account_tax.pipelines.train.callbacks import EngineTimeCallback
    from account_tax.pipelines.train.engine import EngineCallback
    from account_tax.pipelines.train.saving import answer_probe, save_result
    from tests.conftest import make_splits, train_params

    set_seed(42)
    splits = make_splits({"train": 16, "validation": 8})
    labels = splits["train"].features["labels"].names
    params = train_params(base, **{"training.report_to": [], **changed})
    tokenizer = load_base_tokenizer({**params["model"], "num_labels": None}, labels, max_length)
    model: Any = core.instantiate_model({**params["model"], "labels": labels}, tokenizer)
    reference = model.base_reference
    if params["lora"]["enable"]:
        model = core.apply_lora_adapters(model, params["lora"])
    arguments = TrainingArguments(
        output_dir=str(root / "checkpoints"),
        max_steps=2,
        learning_rate=1e-2,
        label_names=["labels"],
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = core._build_trainer(model, tokenizer, arguments, splits, params, root)
    for of_engine in (EngineTimeCallback, EngineCallback):  # there is no DeepSpeed here
        trainer.remove_callback(of_engine)
    trainer.train()
    settings = {
        **{"base": reference.to_dict(), "pooling": params["model"]["pooling"]},
        **{"precision": "fp32", "labels": labels},
    }
    save_result(trainer, reference, root, settings, answer_probe(trainer, tokenizer), {})
    metadata = {"text_columns": ["text"], "separator": " | ", "max_length": max_length}
    complete_settings(root / "adapter", metadata, {"temperature": 1.0, "threshold": None})
    write_manifest(root / "adapter")
    return root / "adapter"
