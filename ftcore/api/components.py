"""The nine kinds of component that a plugin registers: frozen dataclasses with a name, a summary and options.

A component describes; it never holds the state of a run. Nothing here imports torch: components are listed and their
options checked in a fraction of a second, and a component's methods import what they need when they are called.
"""

from __future__ import annotations

from ftcore.api.chat_template import ChatTemplate as ChatTemplate
from ftcore.api.component import EVERY as EVERY
from ftcore.api.component import Component as Component
from ftcore.api.component import Harmless as Harmless
from ftcore.api.component import OptionGroup as OptionGroup
from ftcore.api.dataset_format import DatasetFormat as DatasetFormat
from ftcore.api.foreign_option import ForeignOption as ForeignOption
from ftcore.api.model_family import ModelFamily as ModelFamily
from ftcore.api.model_family import ModelSource as ModelSource
from ftcore.api.plan import Backend as Backend
from ftcore.api.plan import Generator as Generator
from ftcore.api.plan import InferenceEngine as InferenceEngine
from ftcore.api.plan import Judge as Judge
from ftcore.api.plan import Launcher as Launcher
from ftcore.api.plan import Method as Method
from ftcore.api.plan import Optimizer as Optimizer
from ftcore.api.plan import Stage as Stage

KINDS: tuple[type[Component], ...] = (
    DatasetFormat,
    ChatTemplate,
    ModelFamily,
    Method,
    Stage,
    Optimizer,
    Launcher,
    InferenceEngine,
    Backend,
)
