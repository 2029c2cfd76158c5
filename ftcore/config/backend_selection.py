"""Chooses a run's backend: by name, else by the device that the run uses."""

from __future__ import annotations

from ftcore.api.components import Backend
from ftcore.api.plan import RegisteredComponent
from ftcore.api.registry import Plugins
from ftcore.errors import Problem, UsageError, quoted
from ftcore.resources import hardware

CPU = "cpu"


def accelerators(plugins: Plugins) -> tuple[str, ...]:
    """The types of device besides the CPU on this machine: those that ft detects, then those that backends detect."""
    own = hardware.devices()
    claimed = [
        device
        for offer in plugins.of(Backend)
        for device in offer.component.devices
        if device not in own and offer.component.present(device)
    ]
    return tuple(dict.fromkeys(device for device in (*own, *claimed) if device != CPU))


def by_device(plugins: Plugins, *, on_cpu: bool, where: str) -> tuple[RegisteredComponent[Backend], str]:
    """The backend that the device selects, and the type of the device.

    Args:
        plugins: the installed plugins.
        on_cpu: whether the file leaves out accelerators (``use_cpu``).
        where: the place for errors.

    Raises:
        UsageError: no installed backend is for the device, or more than one.
    """
    devices = (() if on_cpu else accelerators(plugins)) or (CPU,)
    offer = plugins.for_devices(devices, where)
    return offer, next(device for device in devices if device in offer.component.devices)


def by_name(
    plugins: Plugins, offer: RegisteredComponent[Backend], *, on_cpu: bool, where: str
) -> tuple[RegisteredComponent[Backend], str]:
    """A backend that the file names, and the type of the run's device.

    Raises:
        UsageError: the backend cannot be used on the device.
    """
    found = accelerators(plugins)
    devices, backend = (() if on_cpu else found) or (CPU,), offer.component
    for device in devices:
        if not backend.unsupported(device):
            return offer, device
    if not on_cpu and not backend.unsupported(CPU):
        hint = "write use_cpu: true, or remove backend"
    elif on_cpu and any(not backend.unsupported(device) for device in found):
        hint = "remove use_cpu, or remove backend"
    else:
        hint = f"remove backend, or write backend: {' or '.join(plugins.usable_backends(devices))}"
    message = f"backend {quoted(backend.name)} cannot be used on {' or '.join(devices)}"
    raise UsageError(Problem(f"{message}: {backend.unsupported(devices[0])}", where, hint))
