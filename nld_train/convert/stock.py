"""The model of a folder in the format of Ministral3ForCausalLM, run by the class that transformers has for it."""

from typing import Any

import torch
from torch import Tensor

from nld_train.convert.config_json import FolderConfig
from nld_train.convert.exported_code import read_float_weights
from nld_train.convert.hf_folder import HFWeights
from nld_train.convert.reference_network import ProbeRow


class StockModel:
    """transformers' own model of the folder in float32 on the CPU, with its first layers."""

    def __init__(self, described: FolderConfig, weights: HFWeights, layers: int, ids: Tensor | None = None) -> None:
        """ids: ascending; those that rows are made of and whose logits are computed; None: all of the vocabulary."""
        from transformers import Ministral3Config, Ministral3ForCausalLM
        from transformers.models.ministral3.modeling_ministral3 import Ministral3RotaryEmbedding

        config = Ministral3Config(**described.content | {"num_hidden_layers": layers})
        with torch.device("meta"):
            self.model: Any = Ministral3ForCausalLM(config).eval()
        # Its frequencies are computed and not stored, so that they are no part of what is loaded below.
        self.model.model.rotary_emb = Ministral3RotaryEmbedding(config=config)
        self.ids = torch.arange(config.vocab_size) if ids is None else ids
        with torch.device("meta"):
            self.model.model.embed_tokens = torch.nn.Embedding(len(self.ids), config.hidden_size)
            self.model.lm_head = torch.nn.Linear(config.hidden_size, len(self.ids), bias=False)
        self.model.load_state_dict(read_float_weights(self.model, weights, self.ids), assign=True)

    def inverse_frequencies(self) -> Tensor:
        """Rotary frequencies as the model computes them, [D / 2]."""
        return self.model.model.rotary_emb.inv_freq

    @torch.no_grad()
    def ar_logits(self, row: ProbeRow) -> Tensor:
        """Causal logits of the clean row, [L, len(ids)]."""
        places = torch.arange(row.start, row.start + len(row.clean))
        return self.model(torch.searchsorted(self.ids, row.clean)[None], position_ids=places[None]).logits[0]
