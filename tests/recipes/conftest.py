"""What the tests of recipes share."""

import pytest

from recipes.engine import tracking


@pytest.fixture(scope="session", autouse=True)
def copied_store():
    """Stores are copies of the first that this process made: MLflow takes two seconds to make one."""
    made, create = [], tracking._create_store

    def copy_or_create(path):
        if made:
            path.write_bytes(made[0])
        else:
            create(path)
            made.append(path.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "_create_store", copy_or_create)
        yield
