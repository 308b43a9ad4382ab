"""What every backbone is: a body that embeds inputs, a linear head, and the role of each parameter."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from metazoo.errors import Incompatible, UserError
from metazoo.precision import Precision
from metazoo.recomputing import Recomputing

Role: TypeAlias = Literal["body", "norm", "head", "context", "fixed"]
"""What a tensor of a backbone is.

`head`: the last linear layer; `norm`: scale and shift of a normalisation layer; `body`: everything else a backbone has
of its own. Of a module that a method has inserted, parameters are `fixed`: meta-learned and never adapted; buffers are
`context`: no parameters, but what every task starts its own copy of and may adapt.
"""

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class Backbone(nn.Module):
    """A `body` from inputs `[n, ...]` to features `[n, D]` and a linear `head` to outputs `[n, N]`."""

    body: nn.Sequential
    head: nn.Module

    def __init__(self, body: nn.Sequential, features: int, ways: int, maps: tuple[int, int, int] | None = None):
        super().__init__()
        self.body = body
        self.head = Head(features, ways)
        self.features = features
        """Length D of a feature vector."""
        self.recomputing: Recomputing | None = None
        """What calls the body in adaptation, so that it is computed anew for derivatives; None keeps what they need."""
        self._maps = maps
        self._inserted: list[str] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs `[n, N]` of inputs `[n, ...]`."""
        return self.head(self.body(inputs))

    def roles(self) -> dict[str, Role]:
        """The role of every parameter and context by its name, read off the modules that own them, in module order."""
        roles: dict[str, Role] = {}
        for path, module in self.named_modules():
            inserted = any(f"{path}.".startswith(f"{prefix}.") for prefix in self._inserted)
            for name, _ in module.named_parameters(prefix=path, recurse=False):
                normalises = isinstance(module, _NORMALISATIONS)
                own: Role = "head" if module is self.head else "norm" if normalises else "body"
                roles[name] = "fixed" if inserted else own
            if inserted:
                roles |= dict.fromkeys((name for name, _ in module.named_buffers(path, recurse=False)), "context")
        return roles

    def insert(self, name: str, module: nn.Module, after: str = "") -> None:
        """Put `module` into the body as `name`, behind its neighbour `after` (`block3.pool`), or at the very front.

        Its parameters become `fixed`, its buffers `context` (register them with `persistent=False`: they are not
        learned). Raises UserError where the body has no such place.
        """
        parent, _, neighbour = after.rpartition(".")
        try:
            place = self.body.get_submodule(parent)
            if not isinstance(place, nn.Sequential) or (neighbour and neighbour not in place._modules):
                raise AttributeError
        except AttributeError:
            raise UserError(f"This backbone's body has no '{after}' behind which '{name}' could be put.") from None
        children = list(place.named_children())
        position = 1 + [child for child, _ in children].index(neighbour) if neighbour else 0
        for child, _ in children:
            del place._modules[child]
        for child, content in (*children[:position], (name, module), *children[position:]):
            place.add_module(child, content)
        self._inserted.append(".".join(part for part in ("body", parent, name) if part))

    def compute_in(self, precision: Precision) -> None:
        """Let the convolutions multiply in a type; everything else stays as it is.

        Between float32 and tf32 the network makes no difference (`metazoo.precision.arithmetic` does). Raises UserError
        for a network that has no such choice.
        """
        if precision == "bfloat16":
            raise UserError("Only conv4 computes in bfloat16; choose another precision, or use conv4.")

    def drop_head(self) -> None:
        """Let the backbone end with its features, for methods that compare embeddings."""
        self.head = nn.Identity()

    def keep_maps(self) -> tuple[int, int, int]:
        """Let the body end with its maps `[n, C, H, W]`, not flattened; (C, H, W), for methods that compare maps.

        Raises Incompatible for a body that has none.
        """
        if self._maps is None:
            raise Incompatible("This method compares feature maps and this backbone has none; use conv4 or resnet12.")
        self.body.flatten = nn.Identity()
        return self._maps


class Head(nn.Linear):
    """The last linear layer. Given fewer features than it has columns (a smaller image), it uses its first ones."""

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[-1] == self.in_features:
            return super().forward(input)
        return F.linear(input, self.weight[:, : input.shape[-1]], self.bias)


def xavier_uniform(module: nn.Module) -> None:
    """Initialise one layer as the MAML++/L2F/ALFA/CxGrad code does: weights Xavier-uniform, biases zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def parameter_count(module: nn.Module) -> int:
    """Number of scalars a module learns."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
