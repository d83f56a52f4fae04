"""What the tests of the scripts share."""

import pytest

from support.deploy import NEW, OLD, Tree


@pytest.fixture
def tree(tmp_path):
    """A host made of a folder."""
    return Tree(tmp_path)


@pytest.fixture
def running(tree):
    tree.release(OLD)
    tree.release(NEW, verified=False)
    tree.run_from(OLD)
    return tree
