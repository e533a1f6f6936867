"""The main encoder alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusionkit.encoders.base import Inputs
from fusionkit.fusion.base import Fusion, FusionOutput
from fusionkit.transfer.base import Transfer


class MainOnly(Fusion):
    """ImgOnly and TextOnly of arXiv 2312.03734, section 4.3: no other modality is read.

    Under main_transfer fine_tune the encoder is fine-tuned, under frozen only the head is trained.

    Args:
        main: The encoder.
        complements: Not used.
    """

    main_alone = True
    reads_tokens = False

    def __init__(self, main: Transfer, complements: Sequence[Transfer]) -> None:
        super().__init__(main, ())

    @property
    def out_dim(self) -> int:
        return self.main.out_dim

    def forward(self, inputs: Mapping[str, Inputs]) -> FusionOutput:
        return FusionOutput(self.run_main(inputs).pooled)
