"""The names that `--method` takes, and the method behind the label of an artifact.

What a method changes in the preset is the block of its name under `methods` in presets/paper.yaml; which
classes implement it is chosen in stages/core/groundings (world models) and stages/core/model_free.py.
"""

from __future__ import annotations

import re

MODEL_FREE = ("iql", "td3-bc", "td3")  # learned from pixels without a world model
TRANSFER, CONTROL = "transfer-", "control"  # <method>-transfer-<source or control>
# policy/<method>-oracle-s<seed>, <method>-data-free-s<seed>: trained on the true reward, on no data
ORACLE, DATA_FREE = "-oracle", "-data-free"


def base_method(label: str) -> str:
    """The method of a label: 'genrl-transfer-walker' → 'genrl', 'transfer-walker' → 'bitagent', 'td3-oracle' → 'td3'"""
    return re.sub(r"-?transfer-.*", "", label.removesuffix(DATA_FREE).removesuffix(ORACLE)) or "bitagent"


def transfer_source(label: str) -> str:
    """'genrl-transfer-walker' → 'walker'; CONTROL for the same budget from scratch; '' for any other label."""
    return label.partition(TRANSFER)[2]


def method_option(method: str) -> tuple[str, ...]:
    """The option of a command line that chooses a method; nothing for the default."""
    return () if method == "bitagent" else ("--method", method)


def is_model_free(method: str) -> bool:
    """Whether a method, or the method of a label, has no world model to pretrain."""
    return base_method(method) in MODEL_FREE
