"""Conditional prompt tuning: the paper's method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from fusionkit.encoders.base import Inputs
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.fusion.requirements import promptable
from fusionkit.prompts.engine import ConditionalPrompts
from fusionkit.prompts.importance import importance_loss
from fusionkit.prompts.psi import PSI_DIM, PsiMode
from fusionkit.prompts.static import INIT_RANGE
from fusionkit.transfer.base import Transfer


class ConditionalPrompt(Fusion):
    """Every layer of the main encoder is prompted on condition of the complements.

    ``[P_s, P_d, P_m]`` of Eq. 3 of arXiv 2312.03734: static, dynamic (a mixture of prompt
    experts) and mapped prompts, each switchable. psi, which the prompts are conditioned on, is
    the complement's pooled feature; several complements are projected and joined by ``psi``.

    Args:
        main: The main encoder, under any mode that has no prompts of its own.
        complements: What the prompts are conditioned on; unused if only static prompts are on.
        static: Whether the static prompt P_s is used.
        dynamic: Whether the dynamic prompt P_d is used.
        mapped: Whether the mapped prompt P_m is used.
        prompt_length: l, rows of the static prompt and of each expert.
        experts: k, prompt experts per layer.
        layers: First prompted layer and the one after the last; null for all.
        router: complement routes by psi, multimodal also by the layer's tokens.
        top_k: Experts that are mixed for an instance; null for all of them (dense).
        temperature: Of the router's softmax.
        noise: Standard deviation of the routing noise, in training only; null for 1 / k^2.
        importance_weight: Weight of the importance loss (Eq. 6).
        importance_threshold: gamma, below which a layer's importance loss is switched off.
        psi: How several complements make one psi: concat, sum or attention. Not used with one.
        psi_dim: Width each of several complements is projected to. Not used with one.
        mapper: pooled maps psi to one row (the paper), sequence reads the complements' tokens.
        mapped_length: m, rows of the mapped prompt; above 1 only under mapper: sequence.
        mapper_dim: Hidden width of the mapper.
        dropout: Probability that an entry of a prompt is dropped in training.
        init_range: Static prompts and experts start as U(-init_range, init_range).

    Raises:
        ConfigError: The main encoder has no layers or takes no prompts, a number is out of range,
            or there is no complement to condition on.
    """

    def __init__(
        self,
        main: Transfer,
        complements: Sequence[Transfer],
        static: bool = True,
        dynamic: bool = True,
        mapped: bool = True,
        prompt_length: int = 6,  # paper, section 4.1
        experts: int = 16,  # paper, section 4.1
        layers: tuple[int, int] | None = None,
        router: Literal["complement", "multimodal"] = "complement",
        top_k: int | None = None,
        temperature: float = 0.1,  # paper, section 3.3
        noise: float | None = None,
        importance_weight: float = 0.01,  # authors' code
        importance_threshold: float = 0.05,  # paper, section 3.4
        psi: PsiMode = "concat",
        psi_dim: int = PSI_DIM,
        mapper: Literal["pooled", "sequence"] = "pooled",
        mapped_length: int = 1,
        mapper_dim: int = 384,  # authors' code; reproduces Table 1
        dropout: float = 0.1,  # authors' code
        init_range: float = INIT_RANGE,
    ) -> None:
        used = complements if dynamic or mapped else ()
        super().__init__(main, used)
        if importance_weight < 0 or importance_threshold < 0:
            raise ConfigError(
                f"importance_weight and importance_threshold are at least 0, given "
                f"{importance_weight} and {importance_threshold}."
            )
        encoder = promptable(main, "conditional_prompt")
        self.prompts = ConditionalPrompts(
            encoder.layer_widths,
            [complement.out_dim for complement in used],
            static=static,
            dynamic=dynamic,
            mapped=mapped,
            prompt_length=prompt_length,
            experts=experts,
            layers=layers,
            router=router,
            top_k=top_k,
            temperature=temperature,
            noise=noise,
            psi=psi,
            psi_dim=psi_dim,
            mapper=mapper,
            mapped_length=mapped_length,
            mapper_dim=mapper_dim,
            dropout=dropout,
            init_range=init_range,
        )
        self.reads_tokens = mapped and mapper == "sequence"
        self.importance_weight = importance_weight
        self.importance_threshold = importance_threshold

    @property
    def layers_alone(self) -> int:
        return self.prompts.layers[0]

    @property
    def out_dim(self) -> int:
        return self.main.out_dim

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        prompts = self.prompts(list(self.see(inputs).values()))
        feature = self.run_main(inputs, prompts).pooled
        routing = prompts.routing
        losses = {}
        if self.training and routing is not None and self.importance_weight > 0:
            loss = importance_loss(routing.probabilities, self.importance_threshold)
            losses["importance"] = self.importance_weight * loss
        return FusionOutput(feature, routing, losses)
