"""PromptFuse and BlindPrompt: learned prompts at a language model's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fusionkit.encoders.base import ExtraTokens, Inputs, MainEncoder
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import complements_of, extendable, layered
from fusionkit.transfer.base import Transfer

_INIT_STD = 0.02  # that of BERT and GPT-2 for word embeddings, in whose place prompts stand


class PromptFuse(Fusion):
    """PromptFuse and BlindPrompt (Liang et al. 2022, arXiv 2203.08055, section 3).

    A language model reads

        [v; p_1; ..; p_N; text],

    v the complement's pooled feature as one token, p_n learned prompts in the place of word
    embeddings, at its input only. Both encoders are frozen in the paper and in ``system:
    promptfuse``; other transfers are allowed.

    ``blind`` is BlindPrompt: the attention of the data, v and text, stays fully visible, while
    prompts see prompts only. They align the modalities without looking at their content.

    In the paper v has the width of the language model and the N D_0 values of the prompts
    (15 thousand) are all that is trained. Where the widths differ, v goes through one linear map,
    which then has most of the parameters. Several complements have N prompts of their own behind
    each v, so that one can be added without another; in BlindPrompt, the prompts of all see each
    other. Prompts start as N(0, 0.02^2); the paper says at random.

    Args:
        main: A text encoder, one whose input takes further tokens.
        complements: One or more.
        prompt_length: N, for each complement.
        blind: Whether prompts are blind to the data (BlindPrompt).

    Raises:
        ConfigError: The main encoder is none for text, takes no further tokens or cannot hide
            them, there is no complement, or ``prompt_length`` is below 1.
    """

    reads_tokens = False

    def __init__(
        self,
        main: Transfer,
        complements: Sequence[Transfer],
        prompt_length: int = 20,  # paper, section 4: 15 thousand parameters at a width of 768
        blind: bool = False,
    ) -> None:
        super().__init__(main, complements_of(complements, "promptfuse"))
        encoder = layered(main, "promptfuse")
        if encoder.modality != "text":
            raise ConfigError(
                f"promptfuse is defined at the input of a language model; the main encoder "
                f"({type(encoder).__name__}) reads fields of type {encoder.modality!r}. Give a "
                f"text encoder as `main`, or use the fusion cocoop, whose main encoder may read "
                f"images."
            )
        if prompt_length < 1:
            raise ConfigError(f"prompt_length is at least 1, given {prompt_length}.")
        extendable(main, "promptfuse", (1 + prompt_length) * len(complements))
        if blind and type(encoder).embed_with is MainEncoder.embed_with:
            raise ConfigError(
                f"blind hides the prompts from text and feature, but {type(encoder).__name__} has "
                f"no way to hide tokens from each other; leave blind out, or give an encoder that "
                f"has, such as bert or gpt2."
            )
        width = encoder.layer_widths[0]
        self.project = nn.ModuleList(
            nn.Identity() if made.out_dim == width else nn.Linear(made.out_dim, width)
            for made in complements
        )
        self.prompts = nn.ParameterList(
            nn.Parameter(nn.init.normal_(torch.empty(prompt_length, width), std=_INIT_STD))
            for _ in complements
        )
        self.prompt_length = prompt_length
        self.blind = blind

    @property
    def out_dim(self) -> int:
        return self.main.out_dim

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        rows = []
        for project, prompts, features in zip(
            self.project, self.prompts, self.see(inputs).values(), strict=True
        ):
            seen = project(features.pooled).unsqueeze(1)
            rows += [seen, prompts.expand(len(seen), -1, -1)]
        extra = self._tokens(torch.cat(rows, dim=1))
        return FusionOutput(self.run_main(inputs, extra=extra).pooled)

    def _tokens(self, rows: Tensor) -> ExtraTokens:
        """The rows, (B, J (1 + N), D_0), with what BlindPrompt hides from them."""
        if not self.blind:
            return ExtraTokens(rows)
        place = torch.arange(rows.shape[1], device=rows.device)
        is_prompt = place % (1 + self.prompt_length) > 0
        return ExtraTokens(rows, visible=~is_prompt[:, None] | is_prompt, blind=is_prompt)
