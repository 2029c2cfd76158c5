"""A backend as a package of its own would have it: a second one for CPUs, which calls torch's own functions only."""

from ftcore import hookimpl
from ftcore.api.components import Backend


class TorchAttention:
    """torch's scaled_dot_product_attention over the whole row, with a mask of the sequences."""

    name = "one-mask"
    splits_rows = False

    def supports(self, call):
        return call.is_plain_causal and call.layout.kv_part is None and not any(call.layout.prefixes or ())

    def forward(self, call):
        import torch

        lengths = torch.tensor(call.layout.lengths)
        sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
        mask = (sequence[:, None] == sequence).tril()
        attend = torch.nn.functional.scaled_dot_product_attention
        out = attend(call.query, call.key, call.value, mask, scale=call.rule.scale, enable_gqa=True)
        return out.transpose(1, 2)


class TorchLoss:
    """torch's cross_entropy over all logits."""

    name = "all-logits"

    def supports(self, hidden, head):
        return True

    def weighted_nll(self, hidden, head, labels, weights, smoothing=0.0):
        return (self.losses(hidden, head, labels, smoothing)[0] * weights).sum()

    def token_logps(self, hidden, head, labels):
        return -self.losses(hidden, head, labels)[0]

    def nll_and_hits(self, hidden, head, labels, smoothing=0.0):
        losses, logits = self.losses(hidden, head, labels, smoothing)
        return losses, logits.argmax(1) == labels

    def losses(self, hidden, head, labels, smoothing=0.0):
        from torch.nn.functional import cross_entropy

        logits = head.logits(hidden)
        return cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing), logits


class TorchCpu(Backend):
    def runtime(self, plan):
        from ftcore.training.backend import BackendRuntime

        runtime = BackendRuntime()
        runtime.name, runtime.attention, runtime.linear_cross_entropy = self.name, (TorchAttention(),), (TorchLoss(),)
        return runtime


@hookimpl
def ft_backends():
    return [TorchCpu(name="torch-cpu", summary="torch's own functions on a CPU")]
