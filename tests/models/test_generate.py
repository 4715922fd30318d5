"""Writing needs a model that writes. Run: python -m pytest tests/models/test_generate.py"""

import pytest

from foreword.errors import ModelError
from foreword.models.generate import write
from foreword.models.tiny import tiny


def test_a_masked_model_writes_nothing():
    with pytest.raises(ModelError, match="is a masked model, which cannot generate"):
        write(tiny("masked"), [], None, lambda *_: 0)
