"""ftcore: fine-tuning in which everything is a plugin. See docs/plugins.md to write one."""

from ftcore import deprecated_names
from ftcore.api.hookspecs import hookimpl

__version__ = "0.2.0"
__all__ = ["__version__", "hookimpl"]

deprecated_names.install()
