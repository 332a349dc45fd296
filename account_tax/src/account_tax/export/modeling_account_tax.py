"""The network of an exported classifier with mean pooling, which transformers does not know.

`export` puts this file beside the weights, with the class it imports here written out in it, so
that it needs transformers alone. Import it, and the Auto classes know the folder.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig

from account_tax.model.classifier import MeanPoolingClassifier


class MeanPoolingConfig(PretrainedConfig):
    """Labels, and under `encoder` the encoder's own configuration."""

    model_type = "account-tax-mean-pooling"

    def __init__(self, encoder: dict[str, Any] | None = None, pooler: bool = True, **fields: Any):
        """Keep the encoder's configuration, and whether its class builds an unused pooler.

        Args:
            encoder: The encoder's configuration, `model_type` among it.
            pooler: False where the encoder takes `add_pooling_layer`; the mean needs no pooler.
            fields: Of PretrainedConfig, such as id2label.
        """
        super().__init__(**fields)
        self.encoder, self.pooler = encoder or {}, pooler


class MeanPoolingForSequenceClassification(MeanPoolingClassifier):
    """`MeanPoolingClassifier`, built from a configuration as `from_pretrained` does it."""

    config_class = MeanPoolingConfig

    def __init__(self, config: MeanPoolingConfig):
        """Build the encoder and the head, without weights."""
        fields = {key: value for key, value in config.encoder.items() if key != "model_type"}
        encoder = AutoConfig.for_model(config.encoder["model_type"], **fields)
        encoder.id2label, encoder.label2id = config.id2label, config.label2id
        options = {} if config.pooler else {"add_pooling_layer": False}
        super().__init__(AutoModel.from_config(encoder, **options))
        self.config = config


AutoConfig.register(MeanPoolingConfig.model_type, MeanPoolingConfig, exist_ok=True)
AutoModelForSequenceClassification.register(
    MeanPoolingConfig, MeanPoolingForSequenceClassification, exist_ok=True
)
