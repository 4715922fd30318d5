"""Define the dimension key and the tensor aliases.

`B` rows, `S` positions, `P` prompt positions, `D` width, `V` vocabulary, `C` labels, `W` words a label, `T` prompts in
a bank, `N` layers, `H` key-value heads, `K` head size, `R` positions read in a row, `U` distinct label pieces.
Names carry the key (`ids_BS`, `prompt_TPD`) and signatures repeat it (`Int[Tensor, "B S"]`); the tests check both.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "Tensor"]
