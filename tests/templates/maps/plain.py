"""Oracles of the templates in ft_plugins/templates/plain.py; oracle_map.py says what the keys mean."""

from __future__ import annotations

from typing import Any

ORACLES: dict[str, dict[str, Any]] = {}
