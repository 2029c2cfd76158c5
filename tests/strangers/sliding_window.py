"""An attention kernel as a package of its own would have it: sliding windows without the scores outside of them."""

from ftcore import hookimpl
from ftcore.api.components import Backend


class SlidingWindow:
    """Queries in blocks of the window's size, each with the keys of its block and of the block before."""

    name = "sliding-window"
    splits_rows = False

    def supports(self, call):
        rule, layout = call.rule, call.layout
        plain = rule.causal and not rule.dropout and rule.softcap is None and rule.sinks is None
        return plain and rule.window is not None and layout.kv_part is None and not any(layout.prefixes or ())

    def forward(self, call):
        import torch

        rows = zip(*(tensor.split(call.layout.lengths, 2) for tensor in (call.query, call.key, call.value)))
        return torch.cat([self.sequence(*row, call.rule) for row in rows], 2).transpose(1, 2)

    def sequence(self, query, key, value, rule):
        from torch.nn.functional import pad, scaled_dot_product_attention

        size, length = rule.window, query.shape[2]
        blocks = -(-length // size)
        behind = blocks * size - length
        query = pad(query, (0, 0, 0, behind)).unflatten(2, (blocks, size))[0].transpose(0, 1)
        keys, values = (
            pad(t, (0, 0, size, behind)).unfold(2, 2 * size, size)[0].permute(1, 0, 3, 2) for t in (key, value)
        )
        band = rule.band(size, 2 * size, query.device).expand(blocks, 1, -1, -1).clone()
        band[0, :, :, :size] = False  # before the sequence
        out = scaled_dot_product_attention(query, keys, values, band, scale=rule.scale, enable_gqa=True)
        return out.transpose(0, 1).flatten(1, 2)[None, :, :length]


@hookimpl
def ft_backends():
    return [Windowed(name="windowed", summary="plain torch with a kernel for sliding windows")]


class Windowed(Backend):
    def runtime(self, plan):
        from ftcore.training.backend import BackendRuntime

        runtime = BackendRuntime()
        runtime.name, runtime.attention = self.name, (SlidingWindow(),)
        return runtime
