"""The models of a router, and which nodes may serve them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from mlxfleet.common.config import ServedModel
from mlxfleet.common.errors import InvalidRequestError, ModelNotFoundError
from mlxfleet.common.messages import ModelInfo, NodeInfo
from mlxfleet.common.sampling_defaults import SamplingDefaults

SHOWN_HASH = 16
NOTHING = ServedModel()


class Catalog:
    """Finds a model by the name in a request, and by what a node tells of itself."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}

    @property
    def names(self) -> list[str]:
        """Names of all models in the API."""
        return list(self._models)

    def find(self, name: str | None) -> str:
        """The model that a request means, which may leave the name out if there is only one.

        ModelNotFoundError if there is no such model, InvalidRequestError if it is not clear.
        """
        known = ", ".join(repr(model) for model in self._models)
        if name is None:
            if len(self._models) == 1:
                return next(iter(self._models))
            raise InvalidRequestError(
                f"several models are served here, so 'model' has to name one: {known}",
                param="model",
                code="missing_model",
            )
        if name not in self._models:
            raise ModelNotFoundError(
                f"the model {name!r} is not served here; it is {known}",
                param="model",
                code="model_not_found",
            )
        return name

    def sampling_defaults(self, name: str) -> SamplingDefaults:
        """What requests for a model are sampled with where they do not say."""
        return self._models[name].sampling

    def bounded(self, name: str, model: ModelInfo) -> ModelInfo:
        """What a node has loaded, as far as the model's own configuration agrees: what it says of
        token ids and context decides about requests that other nodes could answer."""
        known = self._models.get(name, NOTHING)
        return structs.replace(
            model,
            vocab_size=known.vocab_size or model.vocab_size,
            context_length=min(known.context_length or model.context_length, model.context_length),
        )

    def context_length(self, name: str) -> int:
        """A model's longest sequence by its own configuration, 0 if that is not known."""
        return self._models.get(name, NOTHING).context_length

    def model_of(self, info: NodeInfo) -> str | None:
        """The name in the API of a node's model; None if it is not served here."""
        if info.model in self._models:
            return info.model
        return next((m.name for m in self._models.values() if m.source == info.model), None)

    def refusal(self, info: NodeInfo) -> str | None:
        """Why a node cannot serve here; None if it can."""
        name = self.model_of(info)
        if name is None:
            known = ", ".join(model.source or model.name for model in self._models.values())
            return f"it serves the model {info.model!r}, this router only {known}"
        wanted = self._models[name].tokenizer_hash
        if info.tokenizer_hash != wanted:
            return (
                f"its tokenizer for {info.model} is another one: its files have the SHA-256"
                f" {info.tokenizer_hash[:SHOWN_HASH]}..., this router's {wanted[:SHOWN_HASH]}..."
            )
        return None
